//! The hub's API: listings, files, and what its refusals mean.

use ureq::http::{HeaderMap, Response};
use ureq::{Body, http};

use super::http::{Http, escape};
use super::listing::Listing;
use super::{FetchError, FetchOptions, source};

/// The hub.
#[derive(Debug)]
pub(super) struct Hub {
    http: Http,
}

/// A file of a repository at a commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remote<'a> {
    pub(super) repo: &'a str,
    pub(super) commit: &'a str,
    pub(super) path: &'a str,
}

impl Hub {
    pub(super) fn new(options: &FetchOptions) -> Result<Self, FetchError> {
        Ok(Self {
            http: Http::new(options)?,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        self.http.endpoint()
    }

    /// What `repo` holds at `revision`; bounded by the deadline.
    pub(super) fn listing(
        &self,
        repo: &str,
        revision: Option<&str>,
    ) -> Result<Listing, FetchError> {
        let revision_path = match revision {
            // A slash inside a branch's name is no separator of the path.
            Some(revision) => format!("/revision/{}", escape(revision).replace('/', "%2F")),
            None => String::new(),
        };
        let answer = self
            .http
            .text(&format!("/api/models/{repo}{revision_path}?blobs=true"))?;
        if answer.status != 200 {
            let what = format!("the list of {repo}");
            return Err(self.refusal(answer.status, &answer.headers, repo, revision, &what));
        }
        Listing::parse(repo, self.endpoint(), &answer.text)
    }

    /// A file from byte `from` on; the status is 200, 206 or 416.
    pub(super) fn file(
        &self,
        file: Remote<'_>,
        from: Option<u64>,
    ) -> Result<Response<Body>, FetchError> {
        let Remote { repo, commit, path } = file;
        let address = format!("/{repo}/resolve/{commit}/{}", escape(path));
        let response = self.http.get(&address, from)?;
        match response.status() {
            http::StatusCode::OK
            | http::StatusCode::PARTIAL_CONTENT
            | http::StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            status => Err(self.refusal(
                status.as_u16(),
                response.headers(),
                repo,
                Some(commit),
                path,
            )),
        }
    }

    /// What a refusal means. The status alone does not say it: without a token the hub answers 401 for
    /// gated, private and missing repositories alike; `x-error-code` tells gated ones, and whether the
    /// token itself is the trouble only the hub's whoami says.
    fn refusal(
        &self,
        status: u16,
        headers: &HeaderMap,
        repo: &str,
        revision: Option<&str>,
        what: &str,
    ) -> FetchError {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let code = header("x-error-code").unwrap_or_default();
        let endpoint = self.endpoint().to_owned();
        let repo = repo.to_owned();
        let has_token = self.http.has_token();
        let gated = code == "GatedRepo";
        match (status, code) {
            (401, _) | (404, "RepoNotFound") if has_token && self.token_is_bad() => {
                FetchError::BadToken { endpoint }
            }
            (401 | 403, _) if gated && !has_token => FetchError::NoToken { repo, endpoint },
            (401 | 403, _) if gated => FetchError::LicenceNotAccepted { repo, endpoint },
            (404, "RevisionNotFound") => FetchError::NoSuchRevision {
                repo,
                revision: revision.unwrap_or("main").to_owned(),
                endpoint,
            },
            (404, "EntryNotFound") => FetchError::NoSuchFile {
                repo,
                name: what.to_owned(),
                there: "it was in the hub's list a moment ago: try again".to_owned(),
            },
            (401 | 404, _) => FetchError::NoSuchRepo {
                repo,
                endpoint,
                has_token,
            },
            (429, _) => FetchError::TooMany { has_token },
            _ => FetchError::Answer {
                what: what.to_owned(),
                endpoint,
                status,
                detail: match header("x-error-message") {
                    Some(text) => format!(" ({})", source::shown(&self.http.without_token(text))),
                    None => String::new(),
                },
            },
        }
    }

    fn token_is_bad(&self) -> bool {
        let answer = self.http.text("/api/whoami-v2");
        answer.is_ok_and(|answer| answer.status == 401)
    }
}
