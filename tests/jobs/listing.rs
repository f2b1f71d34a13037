//! Listings: every row once, in order, however they are paged and whatever arrives meanwhile.

use tunesmith::clock::DatabaseTime;
use tunesmith::store::jobs::{self, JobSpec};
use tunesmith::store::{Db, Filter, Order, Status};

use super::database::on_both;
use super::{ACCOUNT, spec};

/// All names, read in pages of `limit`.
async fn names(db: &Db, status: Option<Status>, filter: &Filter, limit: u32) -> Vec<String> {
    let mut filter = Filter { limit, ..filter.clone() };
    let mut names = Vec::new();
    loop {
        let page = jobs::list(db, ACCOUNT, status, &filter).await.unwrap();
        assert!(page.items.len() <= limit as usize);
        names.extend(page.items.into_iter().map(|job| job.spec.name));
        match page.next {
            Some(next) => filter.after = Some(next),
            None => return names,
        }
    }
}

/// Seven jobs, of which 2, 3 and 4 were made in the same millisecond.
async fn seven(db: &Db) {
    for n in 0..7 {
        let time = if (2..=4).contains(&n) { 1_000_003 } else { spec(n).creation_time };
        jobs::insert(db, &JobSpec { creation_time: time, ..spec(n) }, &[]).await.unwrap();
    }
}

on_both! {
    async fn pages_of_any_size_show_every_job_once_in_order(db: Db) {
        seven(&db).await;
        let oldest_first: Vec<String> = (0..7).map(|n| format!("job-{n}")).collect();
        let newest_first: Vec<String> = oldest_first.iter().rev().cloned().collect();
        for limit in 1..=8 {
            let ascending = Filter { order: Order::Ascending, ..Filter::default() };
            assert_eq!(names(&db, None, &ascending, limit).await, oldest_first, "limit {limit}");
            assert_eq!(names(&db, None, &Filter::default(), limit).await, newest_first, "limit {limit}");
        }
    }
}

on_both! {
    async fn filters_narrow_and_times_are_strict(db: Db) {
        seven(&db).await;
        jobs::request_stop(&db, ACCOUNT, "job-5", 9, DatabaseTime::default()).await.unwrap();
        assert_eq!(names(&db, Some(Status::Stopped), &Filter::default(), 10).await, ["job-5"]);
        assert_eq!(names(&db, Some(Status::InProgress), &Filter::default(), 2).await.len(), 6);

        let between = Filter {
            created_after: Some(1_000_001),
            created_before: Some(1_000_005),
            order: Order::Ascending,
            ..Filter::default()
        };
        assert_eq!(names(&db, None, &between, 2).await, ["job-2", "job-3", "job-4"]);

        let named = |part: &str| Filter { name_contains: Some(part.into()), ..Filter::default() };
        assert_eq!(names(&db, None, &named("OB-3"), 10).await, ["job-3"]);
        assert!(names(&db, None, &named("job_3"), 10).await.is_empty());
        assert!(names(&db, None, &named("%"), 10).await.is_empty());
    }
}

on_both! {
    async fn jobs_that_arrive_while_paging_neither_hide_nor_repeat_others(db: Db) {
        for n in 0..20 {
            jobs::insert(&db, &spec(n), &[]).await.unwrap();
        }
        let mut filter = Filter { limit: 3, ..Filter::default() };
        let mut seen = Vec::new();
        let mut arriving = 20;
        loop {
            let page = jobs::list(&db, ACCOUNT, None, &filter).await.unwrap();
            seen.extend(page.items.into_iter().map(|job| job.spec.name));
            jobs::insert(&db, &spec(arriving), &[]).await.unwrap();
            arriving += 1;
            let Some(next) = page.next else { break };
            filter.after = Some(next);
        }
        assert_eq!(seen, (0..20).rev().map(|n| format!("job-{n}")).collect::<Vec<_>>());
    }
}
