//! One file a command.

pub mod bench;
pub mod compare;
pub mod doctor;
pub mod pull;
pub mod report;
pub mod run;
pub mod serve;
