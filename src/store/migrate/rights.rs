//! What the user of the database may do, and the statement that gives him what he lacks.

use sqlx::FromRow;

use super::{Cause, Error, Turn};

/// What the service needs and this user lacks. Not asked of partitions: they are used by their parents.
const LACKING: &str = "
    SELECT array(
               SELECT relname::text FROM pg_class c
               WHERE c.relnamespace = s.oid AND NOT c.relispartition AND (
                   c.relkind IN ('r', 'p') AND c.relname <> '_sqlx_migrations'
                       AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                           AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
                   OR c.relkind = 'v' AND NOT has_table_privilege(c.oid, 'SELECT'))
               UNION ALL
               SELECT proname::text FROM pg_proc p
               WHERE p.pronamespace = s.oid AND proname <> 'enqueue' AND NOT has_function_privilege(p.oid, 'EXECUTE')
               ORDER BY 1) AS lacking,
           (SELECT pg_get_userbyid(proowner)::text FROM pg_proc p
            WHERE p.pronamespace = s.oid AND proname = 'make_finished_partitions'
              AND NOT has_schema_privilege(p.proowner, s.oid, 'CREATE')) AS idle_owner
    FROM pg_namespace s WHERE nspname = $1";

#[derive(FromRow)]
struct Lacking {
    lacking: Vec<String>,
    /// Who owns the tables and may not make another one.
    idle_owner: Option<String>,
}

impl Turn {
    /// Whether the service can work with the tables that are there.
    pub(super) async fn check_rights(&mut self) -> Result<(), Error> {
        let found: Option<Lacking> = sqlx::query_as(LACKING)
            .bind(&self.schema)
            .fetch_optional(&mut self.connection)
            .await
            .map_err(Error::away)?;
        let Some(Lacking { lacking, idle_owner }) = found else { return Ok(()) };
        if let Some(owner) = idle_owner {
            return Err(self.may_not_make_tables(owner));
        }
        match lacking.first() {
            Some(first) => Err(self.may_not_use(first).await?),
            None => Ok(()),
        }
    }

    pub(super) async fn may_not_make_schema(&mut self) -> Result<Error, Error> {
        let (user, database) = self.names().await?;
        let schema = &self.schema;
        let may_not = format!("make the schema '{schema}' in the database '{database}'");
        let grant = format!("CREATE SCHEMA \"{schema}\" AUTHORIZATION \"{user}\"");
        Ok(Error::Denied { user, may_not, grant })
    }

    /// The schema is there, and we may not enter it or make anything in it.
    pub(super) async fn may_not_enter(&mut self) -> Result<Error, Error> {
        let sql = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                   WHERE nspname = $1 AND relname = '_sqlx_migrations')";
        let in_use: bool =
            sqlx::query_scalar(sql).bind(&self.schema).fetch_one(&mut self.connection).await.map_err(Error::away)?;
        if in_use {
            return self.may_not_use("its tables").await;
        }
        let (user, _) = self.names().await?;
        Ok(self.may_not_make_tables(user))
    }

    fn may_not_make_tables(&self, user: String) -> Error {
        let schema = &self.schema;
        let may_not = format!("make tables in the schema '{schema}'");
        let grant = format!("GRANT USAGE, CREATE ON SCHEMA \"{schema}\" TO \"{user}\"");
        Error::Denied { user, may_not, grant }
    }

    pub(super) async fn may_not_use(&mut self, what: &str) -> Result<Error, Error> {
        let (user, _) = self.names().await?;
        let schema = &self.schema;
        let may_not = format!("use all of the schema '{schema}' ({what})");
        let grant = format!(
            "GRANT USAGE ON SCHEMA \"{schema}\" TO \"{user}\"; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA \"{schema}\" TO \"{user}\"; \
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA \"{schema}\" TO \"{user}\""
        );
        Ok(Error::Denied { user, may_not, grant })
    }

    /// There is something to change, and it belongs to somebody else.
    pub(super) async fn may_not_change(&mut self, said: &Cause) -> Result<Error, Error> {
        let (user, _) = self.names().await?;
        let sql = "SELECT pg_get_userbyid(relowner)::text FROM pg_class
                   WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1)
                   AND NOT pg_has_role(relowner, 'USAGE') ORDER BY relname = 'jobs' DESC LIMIT 1";
        let owner: Option<String> = sqlx::query_scalar(sql)
            .bind(&self.schema)
            .fetch_optional(&mut self.connection)
            .await
            .map_err(Error::away)?;
        let Some(owner) = owner else { return Ok(self.may_not_make_tables(user)) };
        let may_not = format!("change the schema '{}' ({said})", self.schema);
        Ok(Error::Denied { grant: format!("GRANT \"{owner}\" TO \"{user}\""), user, may_not })
    }

    /// Who we are, and where.
    async fn names(&mut self) -> Result<(String, String), Error> {
        let names = sqlx::query_as("SELECT current_user::text, current_database()::text");
        names.fetch_one(&mut self.connection).await.map_err(Error::away)
    }
}
