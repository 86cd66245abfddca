//! Connections for one statement at a time.
//!
//! A pool asks each connection that comes back for a sign of life: one more round trip for every statement. What has just
//! answered needs none, so such connections are kept beside the pool and used again; the pool makes them, counts them and
//! ends them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{PgPool, Postgres, pool::PoolConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest wait for a sign of life of a connection that may be dead.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// A connection that was not needed for so long goes back to the pool, and so does one that has been kept for so long: the
/// pool ends those that are old or too many.
const KEPT: Duration = Duration::from_secs(60);

/// The connections of one pool. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    pool: PgPool,
    /// Answered their last statement. The last one is used next, so that a quiet time leaves few.
    idle: Arc<Mutex<VecDeque<Kept>>>,
    /// As many as the pool makes, so that waiting here is the only waiting there is.
    turns: Arc<Semaphore>,
    keep: usize,
    doubt: Doubt,
}

struct Kept {
    connection: PoolConnection<Postgres>,
    /// When the pool gave it, or when it last gave a sign of life.
    vouched: Instant,
    used: Instant,
}

impl Connections {
    /// `pool` makes at most `size` connections. Up to `keep` idle ones are kept from others who use the pool.
    pub fn new(pool: PgPool, size: u32, keep: u32, doubt: Doubt) -> Self {
        let turns = Arc::new(Semaphore::new(size as usize));
        Self { pool, idle: Arc::default(), turns, keep: keep as usize, doubt }
    }

    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// One that can be used, as far as anybody knows. Waits without limit when all are in use.
    pub async fn take(&self) -> Result<Unanswered, sqlx::Error> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        while let Some(mut kept) = self.pop() {
            if self.doubt.concerns(kept.vouched.elapsed()) {
                if !sign_of_life(&mut kept.connection).await.unwrap_or_default() {
                    drop(kept.connection.detach());
                    self.drop_doubtful();
                    continue;
                }
                kept.vouched = Instant::now();
            }
            return Ok(Unanswered { kept: Some(kept), home: self.clone(), _turn: turn });
        }
        let connection = self.pool.acquire().await?;
        let now = Instant::now();
        let kept = Kept { connection, vouched: now, used: now };
        Ok(Unanswered { kept: Some(kept), home: self.clone(), _turn: turn })
    }

    fn pop(&self) -> Option<Kept> {
        self.idle().pop_back()
    }

    /// Where one has died, those of its age have too; to ask each would take the caller's time.
    fn drop_doubtful(&self) {
        let doubtful = |kept: &Kept| self.doubt.concerns(kept.vouched.elapsed());
        let (dead, rest): (Vec<_>, _) = std::mem::take(&mut *self.idle()).into_iter().partition(doubtful);
        self.idle().extend(rest);
        dead.into_iter().for_each(|kept| drop(kept.connection.detach()));
    }

    fn put(&self, mut kept: Kept) {
        kept.used = Instant::now();
        let mut idle = self.idle();
        let too_old = idle.front().is_some_and(|first| first.used.elapsed() > KEPT).then(|| idle.pop_front());
        // Whoever ends the pool takes what is idle out first, and then finds nothing new here.
        if kept.vouched.elapsed() < KEPT && idle.len() < self.keep && !self.pool.is_closed() {
            idle.push_back(kept);
        }
        drop(idle);
        drop(too_old);
    }

    /// Ends all connections once they are idle.
    pub async fn close(&self) {
        let ended = self.pool.close();
        self.idle().clear();
        ended.await;
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, VecDeque<Kept>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that owes an answer. It is dropped, not kept, unless the answer has come.
pub(super) struct Unanswered {
    kept: Option<Kept>,
    home: Connections,
    _turn: OwnedSemaphorePermit,
}

impl Unanswered {
    pub fn get(&mut self) -> Result<&mut sqlx::PgConnection, sqlx::Error> {
        self.kept.as_mut().map(|kept| &mut *kept.connection).ok_or(sqlx::Error::PoolClosed)
    }

    /// The answer has come.
    pub fn give_back(mut self) {
        if let Some(kept) = self.kept.take() {
            self.home.put(kept);
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            drop(kept.connection.detach());
        }
    }
}

/// When a connection last failed to answer. Those that are older may be dead as well, after a failover for instance, and
/// each would cost another statement's whole limit.
#[derive(Clone, Default)]
pub(super) struct Doubt(Arc<Mutex<Option<Instant>>>);

impl Doubt {
    pub fn raise(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a connection of this age was there when another one failed.
    pub fn concerns(&self, age: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < age)
    }
}

/// Whether a connection can be used. An error makes the pool drop it without a word, which it could not hear anyhow.
pub(super) async fn sign_of_life(connection: &mut sqlx::PgConnection) -> Result<bool, sqlx::Error> {
    use sqlx::Connection;
    tokio::time::timeout(SIGN_OF_LIFE, connection.ping()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(|()| true)
}
