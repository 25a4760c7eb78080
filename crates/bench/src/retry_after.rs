//! How long a server asks to be left alone: in seconds, or until a date (RFC 9110, section 10.2.3).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::NaiveDateTime;

/// The three spellings of a date in HTTP (RFC 9110, section 5.6.7), all of them in GMT.
const DATES: [&str; 3] = [
    "%a, %d %b %Y %H:%M:%S GMT",
    "%A, %d-%b-%y %H:%M:%S GMT",
    "%a %b %e %H:%M:%S %Y",
];

/// The wait from `now` on; zero until a date that has passed, `None` if the value is neither form.
pub(crate) fn wait(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let read = |form| NaiveDateTime::parse_from_str(value, form).ok();
    let until = DATES.into_iter().find_map(read)?.and_utc().timestamp();
    let until = UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(until).ok()?))?;
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        // The moment of RFC 9110's examples, and a little before it.
        let moment = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let before = moment - Duration::from_millis(2_500);
        let at = |value: &str, now| wait(value, now).map(|wait| wait.as_secs_f64());
        assert_eq!(at("2", moment), Some(2.0));
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(at(date, before), Some(2.5), "{date}");
            assert_eq!(at(date, moment + Duration::from_secs(9)), Some(0.0));
        }
        for neither in ["", "soon", "-1", "1.5", "Sun, 06 Nov 1994 08:49:37 CET"] {
            assert_eq!(at(neither, moment), None, "{neither}");
        }
    }
}
