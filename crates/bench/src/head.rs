//! What matters of a response head, whichever version of HTTP brought it.

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// HTTP status.
    pub status: u16,
    /// Is the body a stream of server-sent events?
    pub event_stream: bool,
    /// Retry-After, as sent.
    pub retry_after: Option<String>,
    /// Where a redirect points.
    pub location: Option<String>,
    /// How the body is compressed, which was not asked for.
    pub encoding: Option<String>,
    /// May the connection carry another request?
    keep_alive: bool,
    /// How the body is framed.
    framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
    /// In frames of HTTP/2, which tell its end themselves.
    Frames,
}

impl Head {
    /// A head of HTTP/1 whose headers are still to be noted. `keeps_alive`: unless one of them says otherwise.
    pub fn new(status: u16, keeps_alive: bool) -> Self {
        Head {
            status,
            event_stream: false,
            retry_after: None,
            location: None,
            encoding: None,
            keep_alive: keeps_alive,
            framing: match status {
                100..=199 | 204 | 304 => Framing::Length(0),
                _ => Framing::UntilClose,
            },
        }
    }

    /// A head of HTTP/2: its body is framed below the headers.
    pub fn of_frames(status: u16) -> Self {
        Head {
            framing: Framing::Frames,
            ..Head::new(status, true)
        }
    }

    /// Take a header in.
    pub fn note(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        let value = String::from_utf8_lossy(value);
        let value = value.trim();
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("content-type") {
            self.event_stream = starts_with_ignoring_case(value, "text/event-stream");
        } else if is("retry-after") {
            self.retry_after = Some(value.to_owned());
        } else if is("location") {
            self.location = Some(value.to_owned());
        } else if is("content-encoding") && !value.eq_ignore_ascii_case("identity") {
            self.encoding = Some(value.to_owned());
        } else if is("connection") {
            for option in value.split(',').map(str::trim) {
                if option.eq_ignore_ascii_case("close") {
                    self.keep_alive = false;
                } else if option.eq_ignore_ascii_case("keep-alive") {
                    self.keep_alive = true;
                }
            }
        } else if matches!(self.status, 100..=199 | 204 | 304) || self.framing == Framing::Frames {
            // Whatever the headers say of the length, it is known.
        } else if is("transfer-encoding") {
            if !value
                .rsplit(',')
                .next()
                .is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"))
            {
                return Err(format!("unknown transfer encoding `{value}`"));
            }
            self.framing = Framing::Chunked;
        } else if is("content-length") && self.framing != Framing::Chunked {
            let length = value
                .parse()
                .map_err(|_| format!("bad content-length `{value}`"))?;
            if matches!(self.framing, Framing::Length(other) if other != length) {
                return Err("two content-lengths that differ".into());
            }
            self.framing = Framing::Length(length);
        }
        Ok(())
    }

    /// How the body is framed.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Does the end of the body have to be guessed from the end of the connection?
    pub fn ends_with_connection(&self) -> bool {
        self.framing == Framing::UntilClose
    }

    /// Can the connection be used again once the body is read?
    pub fn reusable(&self) -> bool {
        self.keep_alive && !self.ends_with_connection()
    }
}

fn starts_with_ignoring_case(value: &str, prefix: &str) -> bool {
    value
        .as_bytes()
        .get(..prefix.len())
        .is_some_and(|v| v.eq_ignore_ascii_case(prefix.as_bytes()))
}
