//! What lets sites enrol themselves, hashed.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "enrolment_keys")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    #[sea_orm(column_type = "Text")]
    pub hash: String,
    #[sea_orm(column_type = "Text")]
    pub name: String,
    pub site: Option<Uuid>,
    #[sea_orm(column_type = "Text")]
    pub names: String,
    pub approves: i64,
    pub uses: i64,
    pub most_uses: i64,
    pub expires: i64,
    pub created: i64,
    pub creator: Uuid,
    pub revoked: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
