//! Written migrations. A migration that has shipped is never changed, and each only adds (tables, columns that may be left
//! out, indexes): coordinators of the version before go on working while it runs and after.

use sea_orm_migration::prelude::*;

mod m0001_first;
mod m0002_names;
mod m0003_lists;
mod m0004_agents;
mod m0005_several;
mod m0006_private_sites;
mod m0007_repositories;

/// All of them, in order.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_first::Migration),
            Box::new(m0002_names::Migration),
            Box::new(m0003_lists::Migration),
            Box::new(m0004_agents::Migration),
            Box::new(m0005_several::Migration),
            Box::new(m0006_private_sites::Migration),
            Box::new(m0007_repositories::Migration),
        ]
    }
}
