//! Pages stay stable while jobs are added, and a page token works only where it came from.

use std::collections::BTreeSet;

use crate::support::{segment, with_app};

#[test]
fn no_job_is_missing_or_twice_while_others_are_added() {
    with_app(async |app| {
        let mut first = BTreeSet::new();
        for n in 0..7 {
            first.insert(app.create(&format!("old-{n}")).await);
        }
        for order in ["Ascending", "Descending"] {
            let (mut seen, mut token, mut page) = (Vec::new(), None::<String>, 0);
            loop {
                let mut target = format!("/model-customization-jobs?maxResults=2&sortOrder={order}");
                if let Some(token) = &token {
                    target.push_str(&format!("&nextToken={}", segment(token)));
                }
                let reply = app.call("GET", &target, None).await.json();
                let jobs = reply["modelCustomizationJobSummaries"].as_array().unwrap();
                assert!(!jobs.is_empty() && jobs.len() <= 2);
                seen.extend(jobs.iter().map(|job| job["jobArn"].as_str().unwrap().to_string()));
                app.create(&format!("new-{order}-{page}")).await;
                page += 1;
                match reply.get("nextToken") {
                    // New jobs come at the end of an ascending listing: it need not be followed for ever.
                    Some(next) if page < 12 => token = Some(next.as_str().unwrap().to_string()),
                    _ => break,
                }
            }
            let distinct: BTreeSet<_> = seen.iter().cloned().collect();
            assert_eq!(distinct.len(), seen.len(), "{order}: a job came twice");
            assert!(first.is_subset(&distinct), "{order}: a job is missing");
        }
        app
    });
}

#[test]
fn a_token_is_refused_with_other_filters_and_wrong_filters_are_refused() {
    with_app(async |app| {
        for n in 0..3 {
            app.create(&format!("job-{n}")).await;
        }
        let reply = app.call("GET", "/model-customization-jobs?maxResults=1", None).await.json();
        let token = segment(reply["nextToken"].as_str().unwrap());
        for target in [
            format!("/model-customization-jobs?nextToken={token}&statusEquals=Failed"),
            format!("/model-customization-jobs?nextToken={token}&sortOrder=Ascending"),
            format!("/custom-models?nextToken={token}"),
            "/model-customization-jobs?nextToken=rubbish".into(),
            "/model-customization-jobs?maxResults=0".into(),
            "/model-customization-jobs?maxResults=1001".into(),
            "/model-customization-jobs?maxResults=many".into(),
            "/model-customization-jobs?statusEquals=Queued".into(),
            "/model-customization-jobs?sortBy=Name".into(),
            "/model-customization-jobs?sortOrder=Up".into(),
            "/model-customization-jobs?creationTimeAfter=yesterday".into(),
            "/custom-models?isOwned=maybe".into(),
            "/custom-models?baseModelArnEquals=short".into(),
        ] {
            let reply = app.call("GET", &target, None).await;
            assert_eq!((reply.status, reply.error()), (400, "ValidationException"), "{target}: {}", reply.text());
        }
        let same = app.call("GET", &format!("/model-customization-jobs?maxResults=2&nextToken={token}"), None).await;
        assert_eq!(same.json()["modelCustomizationJobSummaries"].as_array().unwrap().len(), 2);
        app
    });
}
