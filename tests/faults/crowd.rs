//! Many clients at once: creations and listings side by side, without an error, and no listing misses or repeats a job.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::process::{House, on_each, until};
use crate::support::client::Client;
use crate::support::promise::{Promise, times};
use crate::support::segment;

on_each! {
    async fn two_hundred_creations_and_listings_at_once_are_all_answered_and_agree(house: House) {
        let count = times(60, 200);
        let mut promise = Promise::new(14, "creations_and_listings_at_once", house.on_what());
        let _api = house.start(&["serve", "--role", "api"]);
        house.upload_data().await;
        until("the API answers", async || house.client().try_call("GET", "/custom-models", None).await).await;
        let known = Arc::new(Mutex::new(BTreeSet::new()));
        let makers: Vec<_> = (0..count)
            .map(|n| {
                let (client, request, known) = (house.client(), house.request(&format!("job-{n}"), 20), known.clone());
                tokio::spawn(async move {
                    let reply = client.try_call("POST", "/model-customization-jobs", Some(&request)).await;
                    let reply = reply.expect("a reply");
                    assert_eq!(reply.status, 201, "{}", reply.text());
                    known.lock().unwrap().insert(reply.json()["jobArn"].as_str().unwrap().to_string());
                })
            })
            .collect();
        let listers: Vec<_> = (0..count)
            .map(|n| {
                let (client, known) = (house.client(), known.clone());
                tokio::spawn(async move {
                    let before = known.lock().unwrap().clone();
                    let seen = listing(&client, if n % 2 == 0 { "Ascending" } else { "Descending" }).await;
                    let distinct: BTreeSet<_> = seen.iter().cloned().collect();
                    assert_eq!(distinct.len(), seen.len(), "a job came twice");
                    assert!(before.is_subset(&distinct), "a job is missing");
                })
            })
            .collect();
        for task in makers.into_iter().chain(listers) {
            task.await.unwrap();
        }
        let last = listing(&house.client(), "Ascending").await;
        assert_eq!(last.into_iter().collect::<BTreeSet<_>>(), *known.lock().unwrap());
        promise.tried(format!("{count} creations and {count} listings of twenty jobs a page, all at once"));
        promise.found(format!("0 errors; {count} jobs; no listing missed or repeated one"));
        promise.held();
    }
}

/// All pages, and never an error.
async fn listing(client: &Client, order: &str) -> Vec<String> {
    let (mut seen, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut target = format!("/model-customization-jobs?maxResults=20&sortOrder={order}");
        if let Some(token) = &token {
            target.push_str(&format!("&nextToken={}", segment(token)));
        }
        let reply = client.try_call("GET", &target, None).await.expect("a reply");
        assert_eq!(reply.status, 200, "{}", reply.text());
        let page = reply.json();
        let jobs = page["modelCustomizationJobSummaries"].as_array().unwrap();
        seen.extend(jobs.iter().map(|job| job["jobArn"].as_str().unwrap().to_string()));
        match page.get("nextToken") {
            Some(next) => token = Some(next.as_str().unwrap().to_string()),
            None => return seen,
        }
    }
}
