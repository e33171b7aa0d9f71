//! Makes the events of a world happen.

use super::World;
use super::plan::Fault;
use super::schedule::{Event, Link, System, USUAL_LAG};
use crate::network::{Disturbance, Network};
use crate::s3::Put;

impl World {
    /// Makes an event happen, and counts it if a fault begins with it.
    pub(super) fn apply(&mut self, event: Event) {
        self.site.trace.note(format_args!("event: {event:?}"));
        for fault in begun(&event) {
            self.count(fault);
        }
        let (server, s3) = (&self.site.server, &self.site.s3);
        match event {
            Event::Put(number) => self.put(number),
            Event::Send(number) => self.send(number),
            Event::Delete(number) => {
                let objects = &self.site.objects;
                s3.delete(&objects.upload(number).key);
                objects.deleted(number, server);
            }
            Event::Grant(number) => {
                let upload = self.site.objects.upload(number);
                let denied = upload.denied.iter();
                for reader in denied.flat_map(|denied| denied.to.readers()) {
                    s3.refuse(&upload.key, *reader, false);
                }
            }
            Event::CrashWorker(number) => self.crash_worker(number),
            Event::StopWorker(number) => self.stop_worker(number),
            Event::StartWorker(number) => self.start_worker(number),
            Event::StartWorkers => {
                for number in 0..self.places.len() {
                    self.start_worker(number);
                }
            }
            Event::CrashServer {
                replica,
                forgets_rows,
            } => server.crash(replica, forgets_rows),
            Event::RestartServer(replica) => server.restart(replica),
            Event::Lag { replica, lag } => server.set_lag(replica, lag),
            Event::Disturb { link, disturbance } => {
                for network in self.linked(link) {
                    network.disturb(disturbance);
                }
            }
            Event::Cut { link, is_cut } => {
                for network in self.linked(link) {
                    network.cut(is_cut);
                }
            }
            Event::FailQueue(error) => self.site.queue.fail_with(error),
            Event::Refuse(code) => server.refuse(code),
            Event::FailInserts { code, one_in } => server.fail_inserts(code, one_in),
            Event::LoseKills { one_in } => server.lose_kills(one_in),
            Event::LoseMutations { one_in } => server.lose_mutations(one_in),
            Event::ThrowIn(table) => server.throwing_view(table),
            Event::StoreAway { reader, is_away } => s3.unavailable(reader, is_away),
            Event::Redrive => self.redrive_all(),
            Event::SetManner { manner, rate } => self.set_manner(manner, rate),
            Event::StartBackfill { is_forced } => self.start_backfill(is_forced),
            Event::CrashBackfill => self.crash_backfill(),
            Event::ResumeBackfill => self.resume_backfill(),
            Event::Deploy => self.site.is_fixed = true,
            Event::StartReplay(number) => self.start_replay(number),
            Event::KillReplay(number) => self.kill_replay(number),
        }
    }

    pub(super) fn count(&mut self, fault: Fault) {
        *self.tally.entry(fault.label()).or_default() += 1;
    }

    fn linked(&self, link: Link) -> impl Iterator<Item = &Network> {
        self.places
            .iter()
            .filter_map(move |place| place.linked(link))
            .chain(self.backfills.linked(link))
    }

    fn put(&mut self, number: usize) {
        let site = &self.site;
        let upload = site.objects.upload(number);
        // An object that is denied before anything is loaded pauses all intake, as documented.
        let denied = upload
            .denied
            .filter(|denied| !denied.for_good || site.objects.is_any_loaded(&site.server));
        for reader in denied.iter().flat_map(|denied| denied.to.readers()) {
            site.s3.refuse(&upload.key, *reader, true);
        }
        let is_cut = upload.is_cut;
        let present = site.s3.put(Put {
            key: upload.key.clone(),
            body: upload.body.clone(),
            is_cut,
        });
        let replaces = site
            .objects
            .uploaded(number, &present, denied, &site.server);
        for (fault, has_begun) in [
            (Fault::Cut, is_cut),
            (Fault::Denied, denied.is_some()),
            (Fault::Changed, replaces),
        ] {
            if has_begun {
                self.count(fault);
            }
        }
    }

    fn send(&mut self, number: usize) {
        let (body, is_duplicate) = self.site.objects.message(number);
        self.site.send(body);
        if self.site.plan.has(Fault::Fifo) {
            self.count(Fault::Fifo);
        }
        if is_duplicate {
            self.count(Fault::Duplicates);
        }
    }

    fn crash_worker(&mut self, number: usize) {
        if self.places[number].crash() {
            self.count(Fault::WorkerCrash);
        }
    }

    /// Stops a worker. Nothing waits for its end: another can start before it.
    fn stop_worker(&mut self, number: usize) {
        if self.places[number].stop(&self.site.violations).is_some() {
            self.count(Fault::WorkerStop);
        }
    }

    fn start_worker(&mut self, number: usize) {
        let has_started = self.places[number].start(&self.site);
        if has_started && self.site.plan.has(Fault::Rollout) {
            self.count(Fault::Rollout);
        }
    }

    /// Grants access to all objects that are denied for good, and moves the dead letters back, also
    /// those of objects that still cannot be loaded.
    fn redrive_all(&mut self) {
        for (key, to) in self.site.objects.grant_all() {
            for reader in to.readers() {
                self.site.s3.refuse(&key, *reader, false);
            }
        }
        self.redrive(|_, _| true);
    }
}

/// Returns the faults that begin with an event by itself. Others depend on what the world has.
fn begun(event: &Event) -> Vec<Fault> {
    let fault = match event {
        Event::CrashServer {
            forgets_rows: true, ..
        } => return vec![Fault::ServerCrash, Fault::ForgottenRows],
        Event::CrashServer { .. } => Some(Fault::ServerCrash),
        Event::Lag { lag, .. } => (*lag != Some(USUAL_LAG)).then_some(Fault::Lag),
        Event::Disturb { link, disturbance } => is_any(disturbance).then_some(match link.to {
            System::ClickHouse => Fault::ServerNetwork,
            System::Queue => Fault::QueueNetwork,
            System::Store => Fault::StoreNetwork,
        }),
        Event::Cut { link, is_cut: true } => match link.to {
            System::ClickHouse => Some(Fault::ServerCut),
            System::Queue => Some(Fault::QueueCut),
            System::Store => None,
        },
        Event::FailQueue(error) => error.as_ref().map(|_| Fault::QueueErrors),
        Event::Refuse(code) => code.map(|_| Fault::Refusal),
        Event::FailInserts { one_in, .. } => (*one_in > 0).then_some(Fault::FailedInserts),
        Event::LoseKills { one_in } => (*one_in > 0).then_some(Fault::LostKills),
        Event::LoseMutations { one_in } => (*one_in > 0).then_some(Fault::LostMutations),
        Event::ThrowIn(table) => table.map(|_| Fault::View),
        Event::StoreAway { is_away, .. } => is_away.then_some(Fault::StoreOutage),
        Event::Delete(_) => Some(Fault::Deleted),
        Event::Redrive => Some(Fault::Redrive),
        Event::SetManner { manner, rate } => (*rate > 0).then(|| manner.fault()),
        Event::StartReplay(_) => Some(Fault::Replay),
        Event::Put(_)
        | Event::Send(_)
        | Event::Grant(_)
        | Event::CrashWorker(_)
        | Event::StopWorker(_)
        | Event::StartWorker(_)
        | Event::StartWorkers
        | Event::Deploy
        | Event::KillReplay(_)
        | Event::RestartServer(_)
        | Event::StartBackfill { .. }
        | Event::CrashBackfill
        | Event::ResumeBackfill
        | Event::Cut { .. } => None,
    };
    fault.into_iter().collect()
}

fn is_any(disturbance: &Disturbance) -> bool {
    let Disturbance {
        lost,
        unanswered,
        late,
        slow,
    } = *disturbance;
    [lost, unanswered, late, slow] != [0; 4]
}
