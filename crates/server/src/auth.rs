//! Who may call: keys are kept as digests and compared in constant time.

use http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::error::{ApiError, ServerError};

/// The digest of one key.
pub(crate) type KeyDigest = [u8; 32];

/// The keys that are let in.
pub(crate) struct Keys(Vec<KeyDigest>);

impl Keys {
    /// An empty key would let in everyone who sends none.
    pub fn new(keys: &[String]) -> Result<Self, ServerError> {
        if keys.iter().any(|key| key.trim().is_empty()) {
            return Err(ServerError::Config(
                "--api-key is empty; give a key, or leave the flag out to serve without one"
                    .to_owned(),
            ));
        }
        Ok(Self(
            keys.iter().map(|key| digest(key.as_bytes())).collect(),
        ))
    }

    /// The digest of the caller's key; `None` where no key is asked for.
    pub fn check(&self, headers: &HeaderMap) -> Result<Option<KeyDigest>, ApiError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| bearer(value.as_bytes()))
            .ok_or_else(|| {
                refused("no API key was sent: use the header `Authorization: Bearer KEY`")
            })?;
        let given = digest(given);
        // Every key is compared, and every byte: the time says nothing about how close a guess was.
        let hit = self
            .0
            .iter()
            .fold(false, |hit, key| hit | equal(key, &given));
        if hit {
            Ok(Some(given))
        } else {
            Err(refused("the API key is not one of this server's"))
        }
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| key.trim_ascii())
}

fn refused(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key")
}

pub(crate) fn digest(bytes: &[u8]) -> KeyDigest {
    Sha256::digest(bytes).into()
}

fn equal(a: &KeyDigest, b: &KeyDigest) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |bits, (x, y)| bits | (x ^ y));
    std::hint::black_box(difference) == 0
}

/// The prefix-cache salt of a request: callers with different keys, or with different `cache_salt`
/// fields, never see each other's cached prefixes (a hit can be told by its time).
pub(crate) fn cache_salt(key: Option<&KeyDigest>, salt: Option<&str>) -> u64 {
    if key.is_none() && salt.is_none() {
        return 0;
    }
    let mut hash = Sha256::new();
    hash.update(key.copied().unwrap_or_default());
    hash.update(salt.unwrap_or_default().as_bytes());
    let bytes: [u8; 32] = hash.finalize().into();
    bytes
        .iter()
        .take(8)
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn only_whole_keys_are_let_in() {
        let keys = Keys::new(&["secret".to_owned(), "other".to_owned()]).unwrap();
        for good in ["Bearer secret", "bearer other", "BEARER  secret "] {
            assert!(keys.check(&with(good)).is_ok(), "{good}");
        }
        for bad in [
            "secret",
            "Bearer",
            "Bearer ",
            "Bearer secre",
            "Bearer secrets",
            "Basic secret",
            "Bearer secret,other",
            "Bearersecret",
        ] {
            let error = keys.check(&with(bad)).unwrap_err();
            assert_eq!(error.status, StatusCode::UNAUTHORIZED, "{bad}");
            assert!(!error.message.contains("secret"));
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
        assert!(Keys::new(&[]).unwrap().check(&HeaderMap::new()).is_ok());
        assert!(Keys::new(&[" ".to_owned()]).is_err());
    }

    #[test]
    fn salts_differ_by_key_and_by_field() {
        let (a, b) = (digest(b"a"), digest(b"b"));
        let salts = [
            cache_salt(None, None),
            cache_salt(None, Some("x")),
            cache_salt(None, Some("y")),
            cache_salt(Some(&a), None),
            cache_salt(Some(&a), Some("x")),
            cache_salt(Some(&b), Some("x")),
        ];
        let distinct: std::collections::BTreeSet<_> = salts.iter().collect();
        assert_eq!(distinct.len(), salts.len());
        assert_eq!(cache_salt(Some(&a), Some("x")), salts[4]);
    }
}
