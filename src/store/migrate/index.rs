//! An index beside those who work: on a plain table at once, on a partitioned one on each partition, then put together.
//!
//! Each step looks first, so that the whole may be cut off anywhere and done again.

use super::{Error, Turn, Work, steps::Index};

/// Partitions that come and go meanwhile are looked for again so often.
const ROUNDS: usize = 5;

/// Of the partitions of table $1, those that have no part of the index $2.
const WITHOUT: &str = "
    SELECT child.relname::text FROM pg_inherits h JOIN pg_class child ON child.oid = h.inhrelid
    WHERE h.inhparent = to_regclass($1) AND NOT h.inhdetachpending AND NOT EXISTS (
        SELECT FROM pg_index i JOIN pg_inherits part ON part.inhrelid = i.indexrelid
        WHERE i.indrelid = child.oid AND i.indisvalid AND part.inhparent = to_regclass($2))
    ORDER BY 1";

impl Turn {
    /// Makes an index of a migration, and the parts of it on every partition.
    pub(super) async fn build(
        &mut self,
        version: i64,
        index: &Index<'_>,
        name: &str,
        table: &str,
    ) -> Result<(), Error> {
        if !self.is_partitioned(table).await? {
            return self.build_beside(version, index, name, table).await;
        }
        self.carry_out(version, Work::Statement(&index.only(name, table))).await?;
        for _ in 0..ROUNDS {
            let without: Vec<String> = {
                let query = sqlx::query_scalar(WITHOUT).bind(table).bind(name);
                query.fetch_all(&mut self.connection).await.map_err(Error::away)?
            };
            if without.is_empty() {
                return Ok(());
            }
            for partition in without {
                let part = index.name_on(&partition);
                let made = Box::pin(self.build(version, index, &part, &partition)).await;
                let attach = format!("ALTER INDEX {name} ATTACH PARTITION {part}");
                let made = match made {
                    Ok(()) => self.carry_out(version, Work::Statement(&attach)).await,
                    Err(e) => Err(e),
                };
                match made {
                    Err(e) if self.is_partition(&partition, table).await? => return Err(e),
                    // Retention has dropped its day meanwhile.
                    Err(_) | Ok(()) => {}
                }
            }
        }
        Err(Error::Unsteady { version, table: table.to_owned() })
    }

    /// An index that is there is taken as it is; one that was cut off is no use to anybody, and in the way.
    async fn build_beside(&mut self, version: i64, index: &Index<'_>, name: &str, table: &str) -> Result<(), Error> {
        let valid: Option<bool> =
            sqlx::query_scalar("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)")
                .bind(name)
                .fetch_optional(&mut self.connection)
                .await
                .map_err(Error::away)?;
        match valid {
            Some(true) => return Ok(()),
            Some(false) => {
                tracing::info!("migration {version}: dropping what an index that was cut off has left ({name})");
                self.carry_out(version, Work::Patient(&format!("DROP INDEX CONCURRENTLY {name}"))).await?;
            }
            None => {}
        }
        self.carry_out(version, Work::Patient(&index.beside(name, table))).await
    }

    async fn is_partitioned(&mut self, table: &str) -> Result<bool, Error> {
        let kind = sqlx::query_scalar(
            "SELECT coalesce((SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass($1)), false)",
        );
        kind.bind(table).fetch_one(&mut self.connection).await.map_err(Error::away)
    }

    async fn is_partition(&mut self, partition: &str, table: &str) -> Result<bool, Error> {
        let sql = "SELECT EXISTS (SELECT FROM pg_inherits
                   WHERE inhrelid = to_regclass($1) AND inhparent = to_regclass($2) AND NOT inhdetachpending)";
        let there = sqlx::query_scalar(sql).bind(partition).bind(table);
        there.fetch_one(&mut self.connection).await.map_err(Error::away)
    }
}
