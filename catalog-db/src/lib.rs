//! The catalog: model, state machines, queries, migrations
