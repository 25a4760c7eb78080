//! What a fetch may use: cache, hub, token, programs.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{CATALOGUE, FetchError, Model, dotenv};

/// Where the hub usually is.
const HUB: &str = "https://huggingface.co";
/// A hub that has not answered by then is taken for unreachable.
const DEADLINE: Duration = Duration::from_secs(3);
/// A connection that brings nothing for so long is given up.
const STALL: Duration = Duration::from_secs(30);
/// A `.env` is a few lines; something larger is no `.env`.
const MAX_DOTENV: u64 = 1 << 20;

/// A secret for the hub. It is in no message and in no log: `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token; `None` if the text is empty.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The secret itself, for the request.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// What a fetch may use.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// The models that have a short name.
    pub catalogue: &'static [Model],
    /// The folder of models; one folder a model is made in it.
    pub cache: PathBuf,
    /// The hub's base URL, without a slash at the end.
    pub endpoint: String,
    /// The token for the hub.
    pub token: Option<Token>,
    /// Do not ask the hub.
    pub offline: bool,
    /// How long the hub may take for its first answer, name lookup and connecting included.
    pub deadline: Duration,
    /// How long a connection may bring nothing before it is given up.
    pub stall: Duration,
    /// Where programs (pip) are looked for, in the form of `PATH`.
    pub path: Option<OsString>,
    /// Branch, tag or commit of a hub repository; `None` is its main branch.
    pub revision: Option<String>,
}

impl FetchOptions {
    /// The usual hub without a token, no programs.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            catalogue: CATALOGUE,
            cache: cache.into(),
            endpoint: HUB.to_owned(),
            token: None,
            offline: false,
            deadline: DEADLINE,
            stall: STALL,
            path: None,
            revision: None,
        }
    }

    /// What the environment says, and for the token also the file `.env` in `folder`: the names are
    /// those of the hub's own tools. The environment wins.
    ///
    /// # Errors
    /// There is no folder for the cache.
    pub fn from_env(folder: &Path) -> Result<Self, FetchError> {
        Self::from_vars(|name| std::env::var_os(name), std::env::home_dir(), folder)
    }

    fn from_vars(
        variable: impl Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
        folder: &Path,
    ) -> Result<Self, FetchError> {
        let text = |name: &str| {
            let value = variable(name)?.into_string().ok()?;
            let value = value.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let cache = cache_folder_of(&variable, home).ok_or(FetchError::NoCacheFolder)?;
        let mut options = Self::new(cache.join("models"));
        // From a `.env` come tokens and nothing else: a foreign folder must not be able to say where
        // the token is sent.
        let dotenv = read_dotenv(folder);
        let names = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
        options.token = names
            .iter()
            .find_map(|name| Token::new(&text(name)?))
            .or_else(|| {
                names
                    .iter()
                    .find_map(|name| Token::new(&dotenv::value(&dotenv, name)?))
            });
        if let Some(endpoint) = text("HF_ENDPOINT") {
            options.endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        options.offline = text("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
        });
        if let Some(seconds) = text("HF_HUB_ETAG_TIMEOUT").and_then(|value| value.parse().ok()) {
            options.deadline = Duration::from_secs(seconds);
        }
        options.path = variable("PATH");
        Ok(options)
    }
}

/// The user's cache folder for us; `None` without a home.
pub fn cache_folder() -> Option<PathBuf> {
    cache_folder_of(&|name| std::env::var_os(name), std::env::home_dir())
}

fn cache_folder_of(
    variable: &impl Fn(&str) -> Option<OsString>,
    home: Option<PathBuf>,
) -> Option<PathBuf> {
    // A relative XDG_CACHE_HOME is invalid by the XDG specification and ignored.
    let cache = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(home?.join(".cache")))?;
    Some(cache.join("powerband"))
}

/// The text of `.env` in `folder`; empty if there is none.
fn read_dotenv(folder: &Path) -> String {
    let path = folder.join(".env");
    let small = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_DOTENV);
    if !small {
        return String::new();
    }
    match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            tracing::warn!("cannot read {}: {error}", path.display());
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)], folder: &Path) -> FetchOptions {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(found.1))
        };
        FetchOptions::from_vars(variable, Some("/home/u".into()), folder).unwrap()
    }

    #[test]
    fn the_environment_wins_over_dotenv() {
        let dir = tempfile::tempdir().unwrap();
        let none = options(&[], dir.path());
        assert_eq!(none.token, None);
        assert_eq!(none.endpoint, HUB);
        assert_eq!(none.cache, Path::new("/home/u/.cache/powerband/models"));
        assert!(!none.offline);

        let text = "export HUGGING_FACE_HUB_TOKEN=\"hf_file\"\nHF_ENDPOINT=https://evil.example\n";
        std::fs::write(dir.path().join(".env"), text).unwrap();
        let file = options(&[("HF_TOKEN", "")], dir.path());
        assert_eq!(file.token.as_ref().unwrap().secret(), "hf_file");
        assert_eq!(file.endpoint, HUB);
        let both = [
            ("HUGGING_FACE_HUB_TOKEN", "hf_env"),
            ("HF_ENDPOINT", "http://mirror.example/"),
            ("HF_HUB_OFFLINE", "1"),
            ("XDG_CACHE_HOME", "/c"),
        ];
        let both = options(&both, dir.path());
        assert_eq!(both.token.as_ref().unwrap().secret(), "hf_env");
        assert_eq!(both.endpoint, "http://mirror.example");
        assert!(both.offline);
        assert_eq!(both.cache, Path::new("/c/powerband/models"));
        assert!(!format!("{both:?}").contains("hf_env"));
    }
}
