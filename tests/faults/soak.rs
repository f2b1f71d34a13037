//! Long running does not leak: many jobs of one step, while memory, open files, threads and the cost of a listing
//! are looked at.

use std::time::{Duration, Instant};

use super::process::{House, Process, on_each, within};
use crate::jobs::database::variable;
use crate::support::promise::{Promise, times};

/// Jobs that wait at the same time.
const AHEAD: usize = 8;
/// How often a run looks at what the process holds.
const SAMPLES: usize = 50;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    rss_kb: u64,
    files: usize,
    threads: u64,
    /// The quickest of some listings.
    listing: Duration,
}

on_each! {
    async fn many_jobs_of_one_step_leave_memory_files_and_listings_as_they_were(house: House) {
        let wanted = times(20, 10_000);
        // A run may be bounded in time: what it did by then is what it says.
        let minutes = variable("TEST_MINUTES").map(|minutes| minutes.parse().expect("TEST_MINUTES is a number"));
        let most = Duration::from_secs(minutes.unwrap_or(24 * 60_u64) * 60);
        let mut promise = Promise::new(23, "many_jobs_of_one_step", house.on_what());
        let mut process = house.start(&["serve"]);
        house.upload_data().await;
        let begun = Instant::now();
        let (mut waiting, mut samples) = (std::collections::VecDeque::new(), Vec::new());
        let mut count = 0;
        while count < wanted && begun.elapsed() < most {
            waiting.push_back(house.create(&house.request(&format!("job-{count}"), 1)).await);
            count += 1;
            if waiting.len() > AHEAD {
                house.completed(&waiting.pop_front().unwrap()).await;
            }
            if count % (wanted / SAMPLES).max(1) == 0 {
                samples.push(held(&house, &process).await);
                println!("{count} jobs in {:?}: {:?}", begun.elapsed(), samples.last());
            }
        }
        for spec in waiting {
            house.completed(&spec).await;
        }
        samples.push(held(&house, &process).await);
        assert!(process.is_alive(), "one process did them all");
        let each = begun.elapsed().as_secs_f64() / count as f64;
        let (warm, last) = (samples[samples.len() / 5], samples[samples.len() - 1]);
        promise.tried(format!("{count} jobs of one step in one process, {each:.2} s each"));
        promise.found(format!(
            "after a fifth and at the end: RSS {} and {} MB, open files {} and {}, threads {} and {}, a listing {:.1} and {:.1} ms",
            warm.rss_kb / 1024, last.rss_kb / 1024, warm.files, last.files, warm.threads, last.threads,
            warm.listing.as_secs_f64() * 1e3, last.listing.as_secs_f64() * 1e3
        ));
        // A short run has not warmed up: it only shows that the process stands.
        if count >= 500 {
            assert!(last.rss_kb < warm.rss_kb * 5 / 4 + (16 << 10), "memory grows: {samples:?}");
            assert!(last.files <= warm.files + 8, "files stay open: {samples:?}");
            assert!(last.threads <= warm.threads + 8, "threads stay: {samples:?}");
            assert!(last.listing < warm.listing * 3 + Duration::from_millis(5), "listings slow down: {samples:?}");
        }
        promise.held();
    }
}

async fn held(house: &House, process: &Process) -> Held {
    // Files that are being downloaded or served are closed soon.
    let client = house.client();
    let mut listing = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        let reply = client.call("GET", "/model-customization-jobs?maxResults=100", None).await;
        assert_eq!(reply.status, 200);
        listing = listing.min(begun.elapsed());
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let files = within(Duration::from_secs(5), "the files are counted", async || {
        std::fs::read_dir(format!("/proc/{}/fd", process.id())).ok().map(Iterator::count)
    })
    .await;
    Held { rss_kb: number("VmRSS:"), files, threads: number("Threads:"), listing }
}
