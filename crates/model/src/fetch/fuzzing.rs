//! For the fuzz targets: what is read from outside and is no part of the interface.

use super::{FetchError, dotenv as file, listing::Listing};

/// The value that a `.env` of this text sets `key` to.
pub fn dotenv(text: &str, key: &str) -> Option<String> {
    file::value(text, key)
}

/// The names in a hub's list of files.
///
/// # Errors
/// It is no such list, or a name is not safe.
pub fn listed_files(text: &str) -> Result<Vec<String>, FetchError> {
    let listing = Listing::parse("owner/name", "https://hub.example", text)?;
    Ok(listing.files.into_iter().map(|file| file.name).collect())
}
