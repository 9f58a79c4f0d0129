//! Saved images. A row exists when, and only when, the repository's ref does: it is written by the commit.

use std::collections::BTreeMap;

use ocopea_protocol::{
    ids::{ImageId, RepositoryId, TeamId},
    names::Digest,
    time::Timestamp,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, Condition, EntityTrait, Iterable, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, ExprTrait, LikeExpr, LockType, Query},
};

use crate::{
    Catalog, CatalogError, Transaction,
    database::{is_shared, is_storable, storable},
    entities::{image_comments, image_labels, images},
};

/// A saved image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Whose it is.
    pub team: TeamId,
    /// Digest of its record: its identity.
    pub record: Digest,
    /// Its name.
    pub name: String,
    /// The application.
    pub application: String,
    /// Where it was saved.
    pub site: String,
    /// Who saved it.
    pub creator: String,
    /// The comment given at the save.
    pub comment: String,
    /// Raw bytes.
    pub bytes: u64,
    /// Raw bytes that no earlier image had.
    pub new_bytes: u64,
    /// When.
    pub created: Timestamp,
    /// The repository that it lies in; `None`: the one that coordinators are started with.
    pub repository: Option<RepositoryId>,
    /// Labels as they are now.
    pub labels: BTreeMap<String, String>,
    /// The record as JSON; empty in lists, where nobody reads it.
    pub body: String,
}

/// A comment.
#[derive(Clone, Debug)]
pub struct Comment {
    /// Who.
    pub author: String,
    /// When.
    pub at: Timestamp,
    /// What.
    pub body: String,
}

/// What to look for; all of it must fit.
#[derive(Clone, Debug, Default)]
pub struct ImageSearch {
    /// Words that must all occur in name, comment, application, labels or person.
    pub text: Vec<String>,
    /// Label, with its value if one is wanted.
    pub labels: Vec<(String, Option<String>)>,
    /// The application.
    pub application: Option<String>,
    /// The site it was saved at.
    pub site: Option<String>,
    /// Who saved it.
    pub creator: Option<String>,
    /// The repository that it lies in, as images name it.
    pub repository: Option<Option<RepositoryId>>,
    /// Not older.
    pub since: Option<Timestamp>,
    /// Not newer.
    pub until: Option<Timestamp>,
    /// Only images made before this one (newest come first): the next page.
    pub before: Option<ImageId>,
    /// At most this many.
    pub limit: u64,
}

/// Most words, and most labels, of one search.
const MOST_WORDS: usize = 16;
/// Longest word, in bytes; SQLite takes no pattern beyond 50 000.
const LONGEST_WORD: usize = 1000;
/// Most images of one name that are listed where the name was meant to say which.
const MOST_NAMESAKES: u64 = 20;

impl ImageSearch {
    /// Refuses what can't be searched for: leaving a condition out would find too much.
    fn check(&self) -> Result<(), CatalogError> {
        let refuse = |why| Err(CatalogError::Invalid { what: "the search", why });
        if self.text.len() > MOST_WORDS || self.labels.len() > MOST_WORDS {
            return refuse("16 words and 16 labels at most");
        }
        if self.text.iter().any(|word| word.len() > LONGEST_WORD) {
            return refuse("a word has 1000 bytes at most");
        }
        for text in self.text.iter().chain(&self.application).chain(&self.site).chain(&self.creator) {
            storable("the search", &[text])?;
        }
        for (label, value) in &self.labels {
            storable("the search", &[label, value.as_deref().unwrap_or_default()])?;
        }
        Ok(())
    }
}

impl Catalog {
    /// Images of a team, newest first.
    pub async fn images(&self, team: TeamId, search: &ImageSearch) -> Result<Vec<Image>, CatalogError> {
        search.check()?;
        let mut find = images::Entity::find()
            .filter(images::Column::Team.eq(team.0))
            .filter(images::Column::Deleting.is_null())
            .order_by_desc(images::Column::Id)
            .limit(search.limit.clamp(1, 1000))
            .select_only()
            .columns(images::Column::iter().filter(|column| !matches!(column, images::Column::Body)))
            .column_as(Expr::val(""), images::Column::Body);
        for word in &search.text {
            let pattern = format!("%{}%", escape_like(&word.to_lowercase()));
            find = find.filter(Expr::col(images::Column::Search).like(LikeExpr::new(pattern).escape('\\')));
        }
        for (label, value) in &search.labels {
            let mut condition = Condition::all().add(image_labels::Column::Label.eq(label));
            if let Some(value) = value {
                condition = condition.add(image_labels::Column::Value.eq(value));
            }
            let with_label = Query::select()
                .column(image_labels::Column::Image)
                .from(image_labels::Entity)
                .cond_where(condition)
                .to_owned();
            find = find.filter(images::Column::Id.in_subquery(with_label));
        }
        if let Some(application) = &search.application {
            find = find.filter(images::Column::Application.eq(application));
        }
        if let Some(site) = &search.site {
            find = find.filter(images::Column::Site.eq(site));
        }
        if let Some(creator) = &search.creator {
            find = find.filter(images::Column::Creator.eq(creator));
        }
        if let Some(repository) = search.repository {
            find = find.filter(match repository {
                Some(id) => images::Column::Repository.eq(id.0),
                None => images::Column::Repository.is_null(),
            });
        }
        if let Some(since) = search.since {
            find = find
                .filter(images::Column::Created.gte(since.0))
                .filter(images::Column::Id.gte(id_at(since, -SLACK, 0)));
        }
        if let Some(until) = search.until {
            find = find.filter(images::Column::Created.lte(until.0)).filter(images::Column::Id.lte(id_at(
                until,
                SLACK,
                u8::MAX,
            )));
        }
        if let Some(before) = search.before {
            find = find.filter(images::Column::Id.lt(before.0));
        }
        let rows = find.all(&self.database).await?;
        self.with_labels(rows).await
    }

    async fn with_labels(&self, rows: Vec<images::Model>) -> Result<Vec<Image>, CatalogError> {
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        let labels =
            image_labels::Entity::find().filter(image_labels::Column::Image.is_in(ids)).all(&self.database).await?;
        let mut by_image: BTreeMap<uuid::Uuid, BTreeMap<String, String>> = BTreeMap::new();
        for label in labels {
            by_image.entry(label.image).or_default().insert(label.label, label.value);
        }
        rows.into_iter()
            .map(|row| {
                let own = by_image.remove(&row.id).unwrap_or_default();
                image(row, own)
            })
            .collect()
    }

    /// One image of a team: by id, or by name where only one has it. Nobody deletes or restores another image than
    /// the one meant because its name was given twice.
    pub async fn image(&self, team: TeamId, name: &str) -> Result<Image, CatalogError> {
        if !is_storable(name) {
            return Err(CatalogError::not_found("image", name));
        }
        let own = || {
            images::Entity::find()
                .filter(images::Column::Team.eq(team.0))
                .filter(images::Column::Deleting.is_null())
                .order_by_desc(images::Column::Id)
        };
        let mut rows = match name.parse::<ImageId>() {
            Ok(id) => own().filter(images::Column::Id.eq(id.0)).all(&self.database).await?,
            Err(_) => own().filter(images::Column::Name.eq(name)).limit(MOST_NAMESAKES).all(&self.database).await?,
        };
        if rows.len() > 1 {
            let ids = rows.iter().map(|row| ImageId(row.id).to_string()).collect();
            return Err(CatalogError::Ambiguous { what: "image", name: name.chars().take(80).collect(), ids });
        }
        let row = rows.pop().ok_or_else(|| CatalogError::not_found("image", name))?;
        self.with_labels(vec![row]).await?.pop().ok_or_else(|| CatalogError::not_found("image", name))
    }

    /// The last image of an application in a repository, for reuse of its chunks.
    pub async fn last_image_of(
        &self,
        team: TeamId,
        application: &str,
        site: Option<&str>,
        repository: Option<RepositoryId>,
    ) -> Result<Option<Image>, CatalogError> {
        let repository = Some(repository);
        let (application, site) = (Some(application.to_owned()), site.map(str::to_owned));
        let search = ImageSearch { application, site, repository, limit: 1, ..ImageSearch::default() };
        Ok(self.images(team, &search).await?.pop())
    }

    /// Comments on a team's image, oldest first.
    pub async fn comments(&self, team: TeamId, image: ImageId) -> Result<Vec<Comment>, CatalogError> {
        let own = Query::select()
            .column(images::Column::Id)
            .from(images::Entity)
            .and_where(images::Column::Team.eq(team.0))
            .and_where(images::Column::Id.eq(image.0))
            .to_owned();
        let rows = image_comments::Entity::find()
            .filter(image_comments::Column::Image.in_subquery(own))
            .order_by_asc(image_comments::Column::At)
            .limit(1000)
            .all(&self.database)
            .await?;
        Ok(rows.into_iter().map(|row| Comment { author: row.author, at: Timestamp(row.at), body: row.body }).collect())
    }
}

impl Transaction {
    /// Makes an image visible. One that is there already (a commit repeated after a crash) stays as it is, whosever
    /// it is: the answer is then `false`.
    pub async fn add_image(&self, image: &Image) -> Result<bool, CatalogError> {
        if images::Entity::find_by_id(image.id.0).one(&self.inner).await?.is_some() {
            return Ok(false);
        }
        let texts = [&image.name, &image.application, &image.site, &image.creator, &image.comment, &image.body];
        storable("the image's texts", &texts.map(String::as_str))?;
        for (label, value) in &image.labels {
            storable("the label", &[label, value])?;
        }
        let row = images::ActiveModel {
            id: Set(image.id.0),
            team: Set(image.team.0),
            record: Set(image.record.to_string()),
            name: Set(image.name.clone()),
            application: Set(image.application.clone()),
            site: Set(image.site.clone()),
            creator: Set(image.creator.clone()),
            comment: Set(image.comment.clone()),
            bytes: Set(i64::try_from(image.bytes).unwrap_or(i64::MAX)),
            new_bytes: Set(i64::try_from(image.new_bytes).unwrap_or(i64::MAX)),
            created: Set(image.created.0),
            search: Set(search_text(image)),
            body: Set(image.body.clone()),
            deleting: Set(None),
            repository: Set(image.repository.map(|id| id.0)),
        };
        images::Entity::insert(row).exec_without_returning(&self.inner).await?;
        for (label, value) in &image.labels {
            self.set_label(image.id, label, value).await?;
        }
        Ok(true)
    }

    async fn set_label(&self, image: ImageId, label: &str, value: &str) -> Result<(), CatalogError> {
        storable("the label", &[label, value])?;
        image_labels::Entity::delete_by_id((image.0, label.to_owned())).exec(&self.inner).await?;
        let row = image_labels::ActiveModel {
            image: Set(image.0),
            label: Set(label.to_owned()),
            value: Set(value.to_owned()),
        };
        image_labels::Entity::insert(row).exec_without_returning(&self.inner).await?;
        Ok(())
    }

    /// Sets labels, or takes them away where the value is `None`. `image` has all of its labels then, those that were
    /// changed since it was read included.
    pub async fn change_labels(
        &self,
        image: &mut Image,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<(), CatalogError> {
        if is_shared(&self.inner) {
            // Two who change labels at once would each forget the other's in what is searched.
            let row = images::Entity::find_by_id(image.id.0).select_only().column(images::Column::Id);
            row.lock(LockType::NoKeyUpdate).into_tuple::<uuid::Uuid>().one(&self.inner).await?;
        }
        let own = image_labels::Entity::find().filter(image_labels::Column::Image.eq(image.id.0));
        image.labels = own.all(&self.inner).await?.into_iter().map(|row| (row.label, row.value)).collect();
        for (label, value) in changes {
            match value {
                Some(value) => {
                    self.set_label(image.id, label, value).await?;
                    image.labels.insert(label.clone(), value.clone());
                }
                None => {
                    storable("the label", &[label])?;
                    image_labels::Entity::delete_by_id((image.id.0, label.clone())).exec(&self.inner).await?;
                    image.labels.remove(label);
                }
            }
        }
        let row = images::ActiveModel { search: Set(search_text(image)), ..Default::default() };
        images::Entity::update_many().set(row).filter(images::Column::Id.eq(image.id.0)).exec(&self.inner).await?;
        Ok(())
    }

    /// Adds a comment.
    pub async fn add_comment(&self, image: ImageId, author: &str, body: &str) -> Result<(), CatalogError> {
        storable("the comment", &[author, body])?;
        let row = image_comments::ActiveModel {
            id: Set(self.seams.uuid()),
            image: Set(image.0),
            author: Set(author.to_owned()),
            at: Set(self.seams.clock.now().0),
            body: Set(body.to_owned()),
        };
        image_comments::Entity::insert(row).exec_without_returning(&self.inner).await?;
        Ok(())
    }

    /// Hides an image that is being deleted; of two at once, the second finds it no more.
    pub async fn hide_image(&self, image: ImageId) -> Result<(), CatalogError> {
        let now = self.seams.clock.now().0;
        let row = images::ActiveModel { deleting: Set(Some(now)), ..Default::default() };
        let hidden = images::Entity::update_many()
            .set(row)
            .filter(images::Column::Id.eq(image.0))
            .filter(images::Column::Deleting.is_null())
            .exec(&self.inner)
            .await?;
        if hidden.rows_affected == 1 { Ok(()) } else { Err(CatalogError::not_found("image", image)) }
    }

    /// Shows an image again that could not be deleted.
    pub async fn show_image(&self, image: ImageId) -> Result<(), CatalogError> {
        let row = images::ActiveModel { deleting: Set(None), ..Default::default() };
        images::Entity::update_many().set(row).filter(images::Column::Id.eq(image.0)).exec(&self.inner).await?;
        Ok(())
    }

    /// Forgets an image whose ref is gone.
    pub async fn remove_image(&self, image: ImageId) -> Result<(), CatalogError> {
        image_labels::Entity::delete_many().filter(image_labels::Column::Image.eq(image.0)).exec(&self.inner).await?;
        image_comments::Entity::delete_many()
            .filter(image_comments::Column::Image.eq(image.0))
            .exec(&self.inner)
            .await?;
        images::Entity::delete_by_id(image.0).exec(&self.inner).await?;
        Ok(())
    }
}

fn image(row: images::Model, labels: BTreeMap<String, String>) -> Result<Image, CatalogError> {
    Ok(Image {
        id: ImageId(row.id),
        team: TeamId(row.team),
        record: row.record.parse().map_err(|_| CatalogError::Malformed(row.record.clone()))?,
        name: row.name,
        application: row.application,
        site: row.site,
        creator: row.creator,
        comment: row.comment,
        bytes: u64::try_from(row.bytes).unwrap_or(0),
        new_bytes: u64::try_from(row.new_bytes).unwrap_or(0),
        created: Timestamp(row.created),
        repository: row.repository.map(RepositoryId),
        labels,
        body: row.body,
    })
}

/// How far an image's id, which is made in the request that asks for it, and its time may lie apart, in milliseconds.
const SLACK: i64 = 86_400_000;

/// The least or greatest id of a moment: ids are in the order of time, and an index of them is read no further.
fn id_at(time: Timestamp, slack: i64, rest: u8) -> uuid::Uuid {
    let millis = time.0.saturating_add(slack).clamp(0, (1 << 48) - 1);
    let mut bytes = [rest; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    uuid::Uuid::from_bytes(bytes)
}

fn search_text(image: &Image) -> String {
    let mut text = format!("{} {} {} {} {}", image.name, image.comment, image.application, image.creator, image.site);
    for (label, value) in &image.labels {
        text.push_str(&format!(" {label}={value}"));
    }
    text.to_lowercase()
}

fn escape_like(word: &str) -> String {
    word.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}
