//! No column of a job is forgotten when its row moves: the tables, the view and the entity are held to the one list.

use std::collections::BTreeSet;

use queue_service::store::{
    columns::{OF_FINISHED, OF_LIVE},
    entity::job::Column,
};
use sea_orm::{Iden, Iterable};

use crate::harness::Place;

fn listed(parts: &[&str]) -> BTreeSet<String> {
    parts.iter().flat_map(|part| part.split(", ")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_each_column_of_a_job_is_said_in_one_list() {
    let place = Place::new().await;
    let database = place.database().await;
    let columns = async |table: &str| -> BTreeSet<String> {
        let sql = "SELECT column_name::text FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1";
        sqlx::query_scalar(sql).bind(table).fetch_all(&database).await.unwrap().into_iter().collect()
    };
    assert_eq!(columns("jobs").await, listed(&OF_LIVE));
    assert_eq!(columns("finished_jobs").await, listed(&OF_FINISHED));
    let shown: BTreeSet<String> = Column::iter().map(|column| column.unquoted().to_owned()).collect();
    assert_eq!(columns("all_jobs").await, shown);
    let kept = listed(&OF_FINISHED);
    let made: Vec<_> = shown.difference(&kept).collect();
    assert_eq!(made, ["error"], "made of errors by the view");
}
