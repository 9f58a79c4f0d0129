//! What coordinator and agents say to each other, and the seams that their loops run on.
//!
//! Everything here is plain data with positional encoding in mind: no untagged enums, no flattening,
//! no skipped fields, no free-form JSON values. Kubernetes objects and drivers' facts travel as JSON text.
//! Only [`envelope`] knows the wire format; only [`bus`] knows how messages move.

pub mod bus;
pub mod envelope;
pub mod failure;
pub mod frames;
pub mod identity;
pub mod ids;
pub mod image;
pub mod inventory;
pub mod message;
pub mod names;
pub mod needs;
pub mod plan;
pub mod seams;
pub mod secret;
pub mod session;
pub mod task;
pub mod time;
pub mod trace;
pub mod verdict;
pub mod words;
