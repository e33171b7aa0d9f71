//! Processor time as Linux counts it under `/proc`.

/// Ticks per second in the files of `/proc`.
const TICKS: f64 = 100.0;

/// Returns the processor seconds that a process has used, from the text of `/proc/PID/stat`.
pub fn process_seconds(stat: &str) -> Option<f64> {
    // The name of the program, in parentheses, may contain anything. Behind it the state is field
    // 3, utime 14 and stime 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    let ticks = times.next()?.ok()? + times.next()?.ok()?;
    Some(ticks / TICKS)
}

/// Returns the processor seconds that all programs have used, and that the hypervisor gave to
/// other machines, from the text of `/proc/stat`. Interrupts are left out: on the loopback network
/// they are mostly the benchmark's own.
pub fn busy_seconds(stat: &str) -> Option<f64> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let times: Vec<f64> = all.split_whitespace().flat_map(str::parse).collect();
    let [
        user,
        nice,
        system,
        _idle,
        _iowait,
        _irq,
        _softirq,
        steal,
        ..,
    ] = times[..]
    else {
        return None;
    };
    Some((user + nice + system + steal) / TICKS)
}

/// Returns the share of the cores that other programs used during `seconds`, in which all programs
/// used `busy` processor seconds and those of the benchmark `own`.
pub fn other_load(busy: f64, own: f64, seconds: f64, cores: f64) -> f64 {
    // Both are counted in ticks, so the difference can be slightly below zero.
    ((busy - own) / (seconds * cores)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_time_is_user_and_system_time() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 9 0 1000 1 1";
        assert_eq!(process_seconds(stat), Some(3.0));
    }

    #[test]
    fn busy_time_excludes_waiting_and_interrupts() {
        let stat = "cpu  100 20 30 40000 5000 6 7 50 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_seconds(stat), Some(2.0));
    }

    #[test]
    fn text_that_cannot_be_parsed_has_no_time() {
        assert_eq!(process_seconds("42 (sluice) S 1"), None);
        assert_eq!(busy_seconds("cpu  100 20\n"), None);
        assert_eq!(busy_seconds("intr 1\n"), None);
    }

    #[test]
    fn other_load_is_the_busy_time_beyond_our_own() {
        assert!((other_load(8.0, 5.0, 5.0, 2.0) - 0.3).abs() < 1e-9);
        assert!(other_load(4.9, 5.0, 5.0, 2.0).abs() < 1e-9);
    }
}
