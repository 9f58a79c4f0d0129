//! Saved images.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "images")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Uuid,
    pub team: Uuid,
    #[sea_orm(column_type = "Text")]
    pub record: String,
    #[sea_orm(column_type = "Text")]
    pub name: String,
    #[sea_orm(column_type = "Text")]
    pub application: String,
    #[sea_orm(column_type = "Text")]
    pub site: String,
    #[sea_orm(column_type = "Text")]
    pub creator: String,
    #[sea_orm(column_type = "Text")]
    pub comment: String,
    pub bytes: i64,
    pub new_bytes: i64,
    pub created: i64,
    #[sea_orm(column_type = "Text")]
    pub search: String,
    #[sea_orm(column_type = "Text")]
    pub body: String,
    pub deleting: Option<i64>,
    pub repository: Option<Uuid>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
