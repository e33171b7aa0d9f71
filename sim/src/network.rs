//! What happens to each request: it arrives, is lost, is answered in vain, or arrives late.

use std::fmt::Arguments;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::trace::Trace;

/// The longest time from a request to its answer.
const MAX_LATENCY: Duration = Duration::from_millis(20);
/// The longest time from a request to its answer if the request is slow.
const MAX_SLOW_LATENCY: Duration = Duration::from_secs(10);
/// The longest time after which a client finds out that no answer will come.
const MAX_PATIENCE: Duration = Duration::from_secs(5);
/// The longest time for which a late request is on its way after its client has given it up.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// A process that sends requests. Once it has crashed, none of its requests is sent or answered any
/// more.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its name in the trace.
    pub name: Arc<str>,
    crashed: Arc<AtomicBool>,
}

impl Client {
    pub fn new(name: &str) -> Self {
        Self {
            name: Arc::from(name),
            crashed: Arc::default(),
        }
    }

    pub fn crash(&self) {
        self.crashed.store(true, Ordering::Relaxed);
    }

    pub fn has_crashed(&self) -> bool {
        self.crashed.load(Ordering::Relaxed)
    }

    /// Returns at once, or never if the client has crashed.
    async fn while_alive(&self) {
        if self.has_crashed() {
            std::future::pending::<()>().await;
        }
    }
}

/// How many of 1,000 requests are disturbed, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disturbance {
    /// Requests that never arrive.
    pub lost: u32,
    /// Requests that are carried out, and whose answers are lost.
    pub unanswered: u32,
    /// Requests that arrive after their client has given them up.
    pub late: u32,
    /// Requests that take seconds.
    pub slow: u32,
}

/// The error of a request to which no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The connections between clients and servers. Clones share them.
#[derive(Clone, Debug)]
pub struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    trace: Trace,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: fastrand::Rng,
    disturbance: Disturbance,
    is_cut: bool,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug)]
struct Passage {
    ending: Ending,
    /// How long the request takes to its server.
    there: Duration,
    /// How long its answer takes to the client, or the client to give up.
    back: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Answered,
    Lost,
    Unanswered,
    Late,
}

impl Network {
    /// Creates an undisturbed network.
    pub fn new(rng: fastrand::Rng, trace: Trace) -> Self {
        let state = State {
            rng,
            disturbance: Disturbance::default(),
            is_cut: false,
        };
        Self(Arc::new(Shared {
            trace,
            state: Mutex::new(state),
        }))
    }

    /// Replaces the disturbance of all requests that are sent from now on.
    pub fn disturb(&self, disturbance: Disturbance) {
        self.state().disturbance = disturbance;
    }

    /// Cuts or restores the network. While it is cut, every request and every answer is lost.
    pub fn cut(&self, is_cut: bool) {
        self.state().is_cut = is_cut;
    }

    /// Returns a generator of random numbers that follows from the network's own.
    pub fn rng(&self) -> fastrand::Rng {
        self.state().rng.fork()
    }

    /// Carries a request and its answer. `work` is what the server does; it runs as a whole.
    ///
    /// The trace names the request `what`. If the client crashes, this never returns; a request
    /// that was sent before is carried out nevertheless.
    ///
    /// # Errors
    ///
    /// Fails if no answer arrives. The server may have done its work, or may yet do it.
    pub async fn carry<T: Send + 'static>(
        &self,
        client: &Client,
        what: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Broken> {
        client.while_alive().await;
        let passage = self.passage();
        let answer = match passage.ending {
            Ending::Answered => {
                pause(passage.there).await;
                self.note(format_args!("{} {what}", client.name));
                Some(work())
            }
            Ending::Unanswered => {
                pause(passage.there).await;
                self.note(format_args!("{} {what}: its answer is lost", client.name));
                drop(work());
                None
            }
            Ending::Lost => {
                self.note(format_args!("{} {what}: lost", client.name));
                None
            }
            Ending::Late => {
                self.note(format_args!("{} {what}: delayed", client.name));
                self.run_late(client, what, passage, work);
                None
            }
        };
        pause(passage.back).await;
        client.while_alive().await;
        if answer.is_some() && self.state().is_cut {
            self.note(format_args!("{} {what}: its answer is lost", client.name));
            return Err(Broken);
        }
        answer.ok_or(Broken)
    }

    /// Runs the work after the client has given up.
    fn run_late<T: Send + 'static>(
        &self,
        client: &Client,
        what: &'static str,
        passage: Passage,
        work: impl FnOnce() -> T + Send + 'static,
    ) {
        let (network, name) = (self.clone(), client.name.clone());
        tokio::spawn(async move {
            pause(passage.back + passage.there).await;
            network.note(format_args!("{name} {what}: arrives late"));
            drop(work());
        });
    }

    /// Appends a line to the trace.
    pub(crate) fn note(&self, what: Arguments<'_>) {
        self.0.trace.note(what);
    }

    fn passage(&self) -> Passage {
        let mut state = self.state();
        let state = &mut *state;
        let ending = state.ending();
        let slow = state.disturbance.slow;
        let is_slow = slow > 0 && state.rng.u32(..1000) < slow;
        let max = if is_slow {
            MAX_SLOW_LATENCY
        } else {
            MAX_LATENCY
        };
        let rng = &mut state.rng;
        let (there, back) = match ending {
            Ending::Answered => {
                let there = up_to(rng, max);
                // Most answers take no time of their own, which saves a step of the clock.
                let is_delayed = rng.u8(..4) == 0;
                let rest = if is_delayed {
                    max - there
                } else {
                    Duration::ZERO
                };
                (there, up_to(rng, rest))
            }
            Ending::Lost | Ending::Unanswered => (up_to(rng, max), up_to(rng, MAX_PATIENCE)),
            Ending::Late => (up_to(rng, MAX_DELAY), up_to(rng, MAX_PATIENCE)),
        };
        Passage {
            ending,
            there,
            back,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ending(&mut self) -> Ending {
        if self.is_cut {
            return Ending::Lost;
        }
        let Disturbance {
            lost,
            unanswered,
            late,
            slow: _,
        } = self.disturbance;
        let draw = self.rng.u32(..1000);
        if draw < lost {
            Ending::Lost
        } else if draw < lost + unanswered {
            Ending::Unanswered
        } else if draw < lost + unanswered + late {
            Ending::Late
        } else {
            Ending::Answered
        }
    }
}

/// Returns a random number of whole milliseconds.
fn up_to(rng: &mut fastrand::Rng, max: Duration) -> Duration {
    let max = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(rng.u64(..=max))
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::time::{Instant, timeout};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const ALWAYS: u32 = 1000;

    /// A network, and a server that counts the requests that it has carried out.
    struct Counted {
        network: Network,
        trace: Trace,
        count: Arc<AtomicUsize>,
    }

    impl Counted {
        fn new(disturbance: Disturbance) -> Self {
            let trace = Trace::new(true);
            let network = Network::new(fastrand::Rng::with_seed(7), trace.clone());
            network.disturb(disturbance);
            let count = Arc::default();
            Self {
                network,
                trace,
                count,
            }
        }

        async fn request(&self, client: &Client) -> Result<usize, Broken> {
            let count = self.count.clone();
            let work = move || count.fetch_add(1, Ordering::Relaxed) + 1;
            self.network.carry(client, "counts", work).await
        }

        fn count(&self) -> usize {
            self.count.load(Ordering::Relaxed)
        }
    }

    fn client() -> Client {
        Client::new("worker")
    }

    #[tokio::test(start_paused = true)]
    async fn an_undisturbed_request_is_answered_within_milliseconds() {
        let counted = Counted::new(Disturbance::default());
        for number in 1..100 {
            let start = Instant::now();
            assert_eq!(counted.request(&client()).await, Ok(number));
            // A timer is late by up to a millisecond.
            assert!(start.elapsed() <= MAX_LATENCY + Duration::from_millis(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_request_is_never_carried_out() {
        let counted = Counted::new(Disturbance {
            lost: ALWAYS,
            ..Disturbance::default()
        });
        assert_eq!(counted.request(&client()).await, Err(Broken));
        tokio::time::sleep(HOUR).await;
        assert_eq!(counted.count(), 0);
        counted.network.disturb(Disturbance::default());
        assert_eq!(counted.request(&client()).await, Ok(1));
        counted.network.cut(true);
        assert_eq!(counted.request(&client()).await, Err(Broken));
        counted.network.cut(false);
        assert_eq!(counted.request(&client()).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_request_is_carried_out_before_its_client_gives_up() {
        let counted = Counted::new(Disturbance {
            unanswered: ALWAYS,
            ..Disturbance::default()
        });
        for number in 1..20 {
            assert_eq!(counted.request(&client()).await, Err(Broken));
            assert_eq!(counted.count(), number);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_request_is_carried_out_after_its_client_has_given_up() {
        let counted = Counted::new(Disturbance {
            late: ALWAYS,
            ..Disturbance::default()
        });
        let client = client();
        assert_eq!(counted.request(&client).await, Err(Broken));
        assert_eq!(counted.count(), 0);
        // It was sent before the crash.
        client.crash();
        tokio::time::sleep(MAX_DELAY + Duration::from_secs(1)).await;
        assert_eq!(counted.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_crashed_sends_nothing_and_gets_no_answer() {
        let counted = Counted::new(Disturbance {
            slow: ALWAYS,
            ..Disturbance::default()
        });
        let [before, meanwhile] = [client(), client()];
        before.crash();
        assert!(timeout(HOUR, counted.request(&before)).await.is_err());
        assert_eq!(counted.count(), 0);

        let request = timeout(HOUR, counted.request(&meanwhile));
        let crash = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            meanwhile.crash();
        };
        let (answer, ()) = tokio::join!(request, crash);
        assert!(answer.is_err());
        assert_eq!(counted.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_leads_to_the_same_trace() {
        let run = async || {
            let counted = Counted::new(Disturbance {
                lost: 100,
                unanswered: 100,
                late: 100,
                slow: 100,
            });
            let mut answered = 0;
            for _ in 0..100 {
                answered += u32::from(counted.request(&client()).await.is_ok());
            }
            assert!((50..90).contains(&answered), "{answered}");
            tokio::time::sleep(HOUR).await;
            counted.trace.lines()
        };
        let first = run().await;
        assert_eq!(run().await, first);
        for ending in ["counts", "lost", "is lost", "delayed", "arrives late"] {
            let shown = first.iter().any(|line| line.ends_with(ending));
            assert!(shown, "{ending}: {first:#?}");
        }
    }
}
