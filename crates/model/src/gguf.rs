//! GGUF files: one file with metadata, vocabulary and weights, memory-mapped.
//!
//! [`parse`] reads the header, [`names`] turns the file's tensor names into ours,
//! [`spec`] turns the metadata into a [`crate::ModelSpec`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::{ModelError, Tensor, Weights};

pub mod names;
pub mod parse;
pub mod spec;

pub use parse::{Header, TensorInfo, Value};

/// An open GGUF file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Arc<Mmap>,
    header: Header,
}

impl Gguf {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// The file cannot be read, or breaks the format; the error names file and tensor.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let map = crate::files::map(path)?;
        let header = parse::parse(&map, path)?;
        Ok(Self {
            path: path.to_owned(),
            map,
            header,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The weights under their canonical names.
    ///
    /// # Errors
    /// Two tensors map to one name.
    pub fn weights(&self) -> Result<Weights, ModelError> {
        let architecture = self.string("general.architecture")?.unwrap_or_default();
        let mut tensors = Vec::with_capacity(self.header.tensors.len());
        for t in &self.header.tensors {
            let name = names::canonical(architecture, &t.name);
            tensors.push(Tensor::mapped(
                name,
                t.dtype,
                t.shape.clone(),
                self.map.clone(),
                t.start,
            )?);
        }
        Weights::distinct(tensors)
    }

    /// Pages that were read so far, for the metadata above all, no longer count as memory.
    pub(crate) fn let_go(&self) {
        crate::files::let_go(&self.map, 0, self.map.len());
    }

    /// A text of the metadata.
    ///
    /// # Errors
    /// The value is something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a text")),
        }
    }

    /// A number of the metadata that is neither negative nor fractional.
    ///
    /// # Errors
    /// The value is something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let found = match self.header.metadata.get(key) {
            None => return Ok(None),
            Some(found) => found,
        };
        let number = match found {
            Value::Unsigned(n) => usize::try_from(*n).ok(),
            Value::Signed(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        number
            .map(Some)
            .ok_or_else(|| self.wrong(key, found, "a whole number"))
    }

    /// A number of the metadata.
    ///
    /// # Errors
    /// The value is something else.
    pub fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x as f32)),
            Some(Value::Unsigned(n)) => Ok(Some(*n as f32)),
            Some(Value::Signed(n)) => Ok(Some(*n as f32)),
            Some(other) => Err(self.wrong(key, other, "a number")),
        }
    }

    /// A yes or no of the metadata.
    ///
    /// # Errors
    /// The value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A list of texts of the metadata.
    ///
    /// # Errors
    /// The value is something else.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        let Some(found) = self.header.metadata.get(key) else {
            return Ok(None);
        };
        let strings = match found {
            Value::Array(array) => array.strings(&self.map),
            _ => None,
        };
        strings
            .map(Some)
            .ok_or_else(|| self.wrong(key, found, "a list of texts"))
    }

    /// A list of numbers of the metadata.
    ///
    /// # Errors
    /// The value is something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        let Some(found) = self.header.metadata.get(key) else {
            return Ok(None);
        };
        let numbers = match found {
            Value::Array(array) => array.numbers(&self.map),
            _ => None,
        };
        numbers
            .map(Some)
            .ok_or_else(|| self.wrong(key, found, "a list of numbers"))
    }

    /// A format error of this file.
    pub(crate) fn error(&self, reason: impl Into<String>) -> ModelError {
        ModelError::format(&self.path, reason)
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> ModelError {
        let found = match found {
            Value::Array(_) => "a list".to_owned(),
            other => format!("{other:?}"),
        };
        self.error(format!("{key} is {found}; {expected} is expected"))
    }
}
