//! What a migration does, a statement at a time where it must not be one transaction.
//!
//! A file that begins with `-- no-transaction` is carried out a statement at a time. Each of its statements may run again
//! after a crash between two of them, so each must be one that may: `CREATE INDEX CONCURRENTLY` as it stands, and others in
//! a form that looks first. A statement ends with `;` at the end of a line, outside of `$$`.

/// One statement of a migration that is not one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Made whole whatever a try before has left, also on a partitioned table.
    Index(Index<'a>),
    Statement(&'a str),
}

/// `CREATE [UNIQUE] INDEX CONCURRENTLY name ON table …`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Index<'a> {
    pub unique: bool,
    pub name: &'a str,
    pub table: &'a str,
    /// All that follows the table.
    pub rest: &'a str,
}

impl Step<'_> {
    /// Whether it waits for others without making anybody wait for it: such a one may take as long as it needs.
    pub fn is_patient(&self) -> bool {
        match self {
            Step::Index(_) => true,
            Step::Statement(sql) => sql.split_whitespace().any(|word| word.eq_ignore_ascii_case("concurrently")),
        }
    }
}

/// The statements of a migration.
pub fn steps(sql: &str) -> Vec<Step<'_>> {
    let (mut found, mut begin, mut end, mut quoted) = (Vec::new(), 0, 0, false);
    for line in sql.split_inclusive('\n') {
        end += line.len();
        let code = line.split("--").next().unwrap_or_default();
        quoted ^= code.matches("$$").count() % 2 == 1;
        if !quoted && code.trim_end().ends_with(';') {
            found.extend(step(&sql[begin..end]));
            begin = end;
        }
    }
    found.extend(step(&sql[begin..]));
    found
}

fn step(text: &str) -> Option<Step<'_>> {
    let mut sql = text.trim();
    while let Some(comment) = sql.strip_prefix("--") {
        sql = comment.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
    }
    let sql = sql.trim_end_matches(';').trim_end();
    (!sql.is_empty()).then(|| index(sql).map_or(Step::Statement(sql), Step::Index))
}

fn index(sql: &str) -> Option<Index<'_>> {
    let mut rest = sql;
    let mut word = || {
        let text = rest.trim_start();
        let end = text.find(|c: char| c.is_whitespace() || c == '(').unwrap_or(text.len());
        rest = &text[end..];
        &text[..end]
    };
    let is = |word: &str, wanted: &str| word.eq_ignore_ascii_case(wanted);
    if !is(word(), "create") {
        return None;
    }
    let next = word();
    let unique = is(next, "unique");
    let next = if unique { word() } else { next };
    if !is(next, "index") || !is(word(), "concurrently") {
        return None;
    }
    let name = word();
    if !is(word(), "on") {
        return None;
    }
    let table = word();
    Some(Index { unique, name, table, rest })
}

impl Index<'_> {
    /// On one table, without anybody waiting for it.
    pub fn beside(&self, name: &str, table: &str) -> String {
        format!("CREATE {}INDEX CONCURRENTLY {name} ON {table}{}", self.word(), self.rest)
    }

    /// On a partitioned table alone, to which those of its partitions are attached.
    pub fn only(&self, name: &str, table: &str) -> String {
        format!("CREATE {}INDEX IF NOT EXISTS {name} ON ONLY {table}{}", self.word(), self.rest)
    }

    fn word(&self) -> &'static str {
        if self.unique { "UNIQUE " } else { "" }
    }

    /// Its name on a partition, the same whenever it is asked for. Names have at most 63 bytes.
    pub fn name_on(&self, partition: &str) -> String {
        const LONGEST: usize = 63;
        let whole = format!("{partition}__{}", self.name);
        if whole.len() <= LONGEST {
            return whole;
        }
        // FNV-1a: names that have the same beginning must not become the same name.
        let sum = whole.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        format!("{}_{sum:08x}", &whole[..whole.floor_char_boundary(LONGEST - 9)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_apart_at_the_ends_of_its_statements() {
        let sql = "-- no-transaction\n-- Why; it is so.\nCREATE INDEX CONCURRENTLY jobs_a ON jobs (a, b)\n    WHERE a > 0;\n\
                   DO $$\nBEGIN\n    PERFORM 1;\nEND $$;\n\ncreate unique index concurrently b on t(c);\n\
                   DROP INDEX CONCURRENTLY IF EXISTS jobs_c; -- gone\nANALYZE jobs";
        let found = steps(sql);
        let first = Index { unique: false, name: "jobs_a", table: "jobs", rest: " (a, b)\n    WHERE a > 0" };
        assert_eq!(found[0], Step::Index(first));
        assert_eq!(found[1], Step::Statement("DO $$\nBEGIN\n    PERFORM 1;\nEND $$"));
        let third = Index { unique: true, name: "b", table: "t", rest: "(c)" };
        assert_eq!(found[2], Step::Index(third));
        assert_eq!(found[3], Step::Statement("DROP INDEX CONCURRENTLY IF EXISTS jobs_c; -- gone"));
        assert_eq!(found[4], Step::Statement("ANALYZE jobs"));
        assert_eq!(found.len(), 5);
        let patient: Vec<bool> = found.iter().map(Step::is_patient).collect();
        assert_eq!(patient, [true, false, true, true, false]);
        assert_eq!(first.beside("x", "y"), "CREATE INDEX CONCURRENTLY x ON y (a, b)\n    WHERE a > 0");
        assert_eq!(third.only("x", "y"), "CREATE UNIQUE INDEX IF NOT EXISTS x ON ONLY y(c)");
    }

    #[test]
    fn an_index_has_a_name_of_its_own_on_each_partition() {
        let index = Index { unique: false, name: "finished_jobs_by_something_quite_long", table: "t", rest: "" };
        let (one, two) = (index.name_on("finished_completed_20260101"), index.name_on("finished_completed_20260102"));
        assert!(one.len() <= 63 && two.len() <= 63 && one != two, "{one} {two}");
        assert_eq!(Index { name: "by_id", ..index }.name_on("p"), "p__by_id");
    }

    #[test]
    fn every_migration_without_a_transaction_can_be_taken_apart() {
        for migration in sqlx::migrate!("./migrations").iter().filter(|migration| migration.no_tx) {
            for step in steps(migration.sql.as_str()) {
                let Step::Statement(sql) = step else { continue };
                let plain = !sql.to_lowercase().contains("create index concurrently");
                assert!(plain, "migration {}: an index is not recognised: {sql}", migration.version);
            }
        }
    }
}
