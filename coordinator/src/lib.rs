//! Plans, API, background jobs
