//! Processes of agents that signed in.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "instances")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub site: Uuid,
    #[sea_orm(column_type = "Text")]
    pub instance_key: String,
    #[sea_orm(column_type = "Text")]
    pub cluster: String,
    pub created: i64,
    pub seen: i64,
    pub ended: Option<i64>,
    #[sea_orm(column_type = "Text", nullable)]
    pub why: Option<String>,
    pub turn: i64,
    pub mark: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
