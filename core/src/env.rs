//! The sources of randomness, of the wall clock and of new ids.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::{Builder, Uuid};

/// The sources of everything that differs between runs: those of the system, or, for a simulation,
/// sources derived from a seed and from Tokio's clock.
#[derive(Clone, Debug, Default)]
pub struct Env(Option<Arc<Seeded>>);

#[derive(Debug)]
struct Seeded {
    random: Mutex<fastrand::Rng>,
    began: Instant,
    began_at: SystemTime,
}

impl Env {
    /// Returns an environment in which everything follows from the seed. The wall clock begins at
    /// `began_at`, and advances with Tokio's clock.
    pub fn seeded(seed: u64, began_at: SystemTime) -> Self {
        Self(Some(Arc::new(Seeded {
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            began: Instant::now(),
            began_at,
        })))
    }

    /// Returns a random number, at least 0 and less than 1.
    #[expect(clippy::disallowed_methods, reason = "this is the environment")]
    pub fn fraction(&self) -> f64 {
        match &self.0 {
            None => fastrand::f64(),
            Some(seeded) => seeded.random().f64(),
        }
    }

    /// Returns the time of the wall clock.
    #[expect(clippy::disallowed_methods, reason = "this is the environment")]
    pub fn wall_clock(&self) -> SystemTime {
        match &self.0 {
            None => SystemTime::now(),
            Some(seeded) => seeded.began_at + seeded.began.elapsed(),
        }
    }

    /// Returns a new id (UUID version 7). Ids sort by the time at which they were made, to the
    /// millisecond.
    #[expect(clippy::disallowed_methods, reason = "this is the environment")]
    pub fn new_id(&self) -> Uuid {
        match &self.0 {
            None => Uuid::now_v7(),
            Some(seeded) => {
                let since_epoch = self.wall_clock().duration_since(SystemTime::UNIX_EPOCH);
                let millis = since_epoch.unwrap_or(Duration::ZERO).as_millis();
                let mut random = [0; 10];
                seeded.random().fill(&mut random);
                let millis = u64::try_from(millis).unwrap_or(u64::MAX);
                Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
            }
        }
    }
}

impl Seeded {
    fn random(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn everything_follows_from_the_seed_and_the_clock() {
        let began_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let [one, same, other] = [7, 7, 8].map(|seed| Env::seeded(seed, began_at));
        let first = one.new_id();
        assert_eq!(first, same.new_id());
        assert_ne!(first, other.new_id());
        assert_eq!(one.fraction().to_bits(), same.fraction().to_bits());
        assert_eq!(first.get_version_num(), 7);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(one.wall_clock(), began_at + Duration::from_secs(1));
        assert!(first < one.new_id());
    }
}
