//! Reads and writes the files of a volume, inside a short-lived pod.
//!
//! The binary speaks frames ([`wire`]) on its standard input and output; the agent at the other end of an exec
//! stream uses the same library. [`read`] walks a directory tree at its mount and tells every entry and its contents,
//! in an order that is always the same. [`write`](mod@write) makes such a tree in an empty directory, believing nothing that
//! it is told, then reads back what it made. Neither keeps more in memory than one directory's next names, the open
//! directories' chain and the hard links that are still awaited.

mod attributes;
mod clear;
pub mod content;
pub mod entry;
mod fault;
mod hold;
mod links;
pub mod read;
mod stamp;
mod tree;
pub mod wire;
pub mod write;

pub use fault::{Class, Fault, show};
pub use hold::hold;
pub use tree::open_root;
