//! What was acknowledged is there after a crash: jobs, tags, deployments and objects, written by many at once while
//! the process is killed again and again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use md5::{Digest, Md5};
use serde_json::{Value, json};
use tunesmith::objects::{Objects, Put, Uri};

use super::process::{Backend, House, on_each, until};
use crate::support::client::Client;
use crate::support::promise::{Dice, Promise, seed, times};
use crate::support::segment;

const WRITERS: usize = 6;
/// A kill comes so long after the start at most.
const LONGEST_LIFE_MS: u64 = 4000;

/// What was acknowledged.
#[derive(Default)]
struct Acknowledged {
    /// Names and ARNs.
    jobs: BTreeMap<String, String>,
    /// ARN, key and value.
    tags: Vec<(String, String, String)>,
    /// Names and ARNs of deployments that are there.
    deployments: BTreeMap<String, String>,
    /// ARNs of deployments that were deleted.
    deleted: Vec<String>,
    /// Keys, with what their bytes are drawn from.
    objects: BTreeMap<String, u64>,
}

impl Acknowledged {
    fn count(&self) -> usize {
        let deployments = self.deployments.len() + 2 * self.deleted.len();
        self.jobs.len() + self.tags.len() + deployments + self.objects.len()
    }
}

/// Everything that a writer needs.
#[derive(Clone)]
struct Writer {
    client: Client,
    objects: Objects,
    /// Only the embedded object store is killed with the process.
    keeps_objects: bool,
    bucket: String,
    model: String,
    all: Arc<Mutex<Acknowledged>>,
    enough: usize,
    unanswered: Arc<AtomicUsize>,
}

on_each! {
    async fn what_was_acknowledged_is_there_after_every_kill(house: House) {
        let enough = times(300, 10_000);
        let seed = seed();
        let mut dice = Dice::new(seed);
        let mut promise = Promise::new(4, "what_was_acknowledged_is_there", house.on_what()).seeded(seed);
        let process = house.start(&["serve"]);
        house.upload_data().await;
        let parent = house.create(&house.request("parent", 20)).await;
        let model = house.completed(&parent).await.output_model_arn.unwrap();
        process.kill();

        let writer = Writer {
            client: Client { patience: Duration::from_secs(20), ..house.client() },
            objects: house.objects.clone(),
            keeps_objects: house.backend() == Backend::Embedded,
            bucket: house.bucket.clone(),
            model,
            all: Arc::default(),
            enough,
            unanswered: Arc::default(),
        };
        let mut process = house.start(&["serve", "--role", "api"]);
        let writers: Vec<_> =
            (0..WRITERS).map(|n| tokio::spawn(writer.clone().write(n, dice.below(1 << 30)))).collect();
        let mut kills = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            tokio::time::sleep(Duration::from_millis(1000 + dice.below(LONGEST_LIFE_MS))).await;
            process.kill();
            kills += 1;
            process = house.start(&["serve", "--role", "api"]);
            println!("{kills} kills, {} writes acknowledged", writer.all.lock().unwrap().count());
        }
        for writer in writers {
            writer.await.unwrap();
        }
        until("the service answers", async || writer.client.try_call("GET", "/custom-models", None).await).await;
        let (lost, kinds, count) = writer.missing().await;
        promise.tried(format!("{count} acknowledged writes ({kinds}) by {WRITERS} writers under {kills} SIGKILLs"));
        promise.found(format!("{} lost; {} requests had no answer", lost.len(), writer.unanswered.load(Ordering::Relaxed)));
        assert!(count >= enough, "{count} writes");
        assert!(lost.is_empty(), "lost: {lost:?}");
        assert_eq!(process.terminate().await.code(), Some(0));
        promise.held();
    }
}

impl Writer {
    async fn write(self, number: usize, seed: u64) {
        let mut dice = Dice::new(seed);
        let mut n = 0;
        while self.all.lock().unwrap().count() < self.enough {
            n += 1;
            let name = format!("w{number}-{n}");
            let written = match dice.below(20) {
                0..10 if self.keeps_objects => self.object(&name, dice.below(1 << 40)).await,
                10 | 11 => self.deploy(&name).await,
                12 => self.undeploy(number).await,
                13..16 => self.tag(&name, number).await,
                _ => self.job(&name).await,
            };
            if written.is_none() {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                // The process is down: a moment, or the loop only counts refusals.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn accepted(&self, method: &str, target: &str, body: Option<&Value>) -> Option<Value> {
        let reply = self.client.try_call(method, target, body).await?;
        if reply.status < 300 {
            return Some(if reply.body.is_empty() { Value::Null } else { reply.json() });
        }
        assert!(matches!(reply.status, 429 | 503), "{method} {target}: {} {}", reply.status, reply.text());
        None
    }

    async fn job(&self, name: &str) -> Option<()> {
        let body = json!({
            "jobName": name,
            "customModelName": format!("model-{name}"),
            "roleArn": "arn:aws:iam::111111111111:role/tuner",
            "baseModelIdentifier": super::tiny::MODEL,
            "clientRequestToken": format!("token-{name}"),
            "trainingDataConfig": { "s3Uri": format!("s3://{}/train.jsonl", self.bucket) },
            "outputDataConfig": { "s3Uri": format!("s3://{}/out/", self.bucket) },
        });
        let made = self.accepted("POST", "/model-customization-jobs", Some(&body)).await?;
        let arn = made["jobArn"].as_str().unwrap().to_string();
        self.all.lock().unwrap().jobs.insert(name.into(), arn);
        Some(())
    }

    async fn tag(&self, value: &str, number: usize) -> Option<()> {
        // Fifty tags are the most of one resource.
        let arn = {
            let all = self.all.lock().unwrap();
            let mine = all.jobs.iter().filter(|(name, _)| name.starts_with(&format!("w{number}-")));
            mine.map(|(_, arn)| arn.clone()).find(|arn| all.tags.iter().filter(|tag| &tag.0 == arn).count() < 40)
        };
        let arn = arn?;
        let body = json!({"resourceARN": arn, "tags": [{"key": value, "value": value}]});
        self.accepted("POST", "/tagResource", Some(&body)).await?;
        self.all.lock().unwrap().tags.push((arn, value.into(), value.into()));
        Some(())
    }

    async fn deploy(&self, name: &str) -> Option<()> {
        let body = json!({
            "modelDeploymentName": name, "modelArn": self.model, "clientRequestToken": format!("token-{name}"),
        });
        let path = "/model-customization/custom-model-deployments";
        let made = self.accepted("POST", path, Some(&body)).await?;
        let arn = made["customModelDeploymentArn"].as_str().unwrap().to_string();
        self.all.lock().unwrap().deployments.insert(name.into(), arn);
        Some(())
    }

    async fn undeploy(&self, number: usize) -> Option<()> {
        let mine = format!("w{number}-");
        let next = {
            let all = self.all.lock().unwrap();
            all.deployments.iter().find(|(name, _)| name.starts_with(&mine)).map(|(k, v)| (k.clone(), v.clone()))
        };
        let (name, arn) = next?;
        let path = format!("/model-customization/custom-model-deployments/{}", segment(&arn));
        let reply = self.client.try_call("DELETE", &path, None).await?;
        // An earlier request of this kind may have been done without an answer; one being made is refused.
        if matches!(reply.status, 429 | 503) || reply.error() == "ConflictException" {
            return None;
        }
        assert!(reply.status < 300 || reply.status == 404, "{} {}", reply.status, reply.text());
        let mut all = self.all.lock().unwrap();
        all.deployments.remove(&name);
        all.deleted.push(arn);
        Some(())
    }

    async fn object(&self, name: &str, value: u64) -> Option<()> {
        let uri = Uri::new(&self.bucket, format!("kept/{name}"));
        self.objects.put_bytes(&uri, bytes(value), &Put::default()).await.ok()?;
        self.all.lock().unwrap().objects.insert(uri.key().into(), value);
        Some(())
    }

    /// What is not there any more, or not as it was written; the counts by kind; and their sum.
    async fn missing(&self) -> (Vec<String>, String, usize) {
        let all = std::mem::take(&mut *self.all.lock().unwrap());
        let mut lost = Vec::new();
        let jobs = "/model-customization-jobs";
        for (name, arn) in &all.jobs {
            let found = self.client.call("GET", &format!("{jobs}/{}", segment(arn)), None).await;
            if found.status != 200 || found.json()["jobName"] != name.as_str() {
                lost.push(format!("job {name}: {}", found.status));
            }
        }
        let tagged: std::collections::BTreeSet<&String> = all.tags.iter().map(|tag| &tag.0).collect();
        for arn in tagged {
            let found = self.client.call("POST", "/listTagsForResource", Some(&json!({"resourceARN": arn}))).await;
            let there = found.json()["tags"].clone();
            let there = there.as_array().cloned().unwrap_or_default();
            for (_, key, value) in all.tags.iter().filter(|tag| &tag.0 == arn) {
                if !there.iter().any(|tag| tag["key"] == key.as_str() && tag["value"] == value.as_str()) {
                    lost.push(format!("tag {key} of {arn}"));
                }
            }
        }
        let place = |arn: &String| format!("/model-customization/custom-model-deployments/{}", segment(arn));
        for (name, arn) in &all.deployments {
            if self.client.call("GET", &place(arn), None).await.status != 200 {
                lost.push(format!("deployment {name}"));
            }
        }
        for arn in &all.deleted {
            if self.client.call("GET", &place(arn), None).await.status != 404 {
                lost.push(format!("deletion of {arn}"));
            }
        }
        for (key, value) in &all.objects {
            let uri = Uri::new(&self.bucket, key);
            let found = self.objects.get_bytes(&uri, 1 << 20).await;
            let etag = self.objects.head(&uri).await.map(|head| head.etag).unwrap_or_default();
            let whole = found.is_ok_and(|found| found == bytes(*value));
            if !whole || etag != hex::encode(Md5::digest(bytes(*value))) {
                lost.push(format!("object {key}"));
            }
        }
        let kinds = format!(
            "{} jobs, {} tags, {} deployments made and {} deleted, {} objects",
            all.jobs.len(),
            all.tags.len(),
            all.deployments.len() + all.deleted.len(),
            all.deleted.len(),
            all.objects.len()
        );
        (lost, kinds, all.count())
    }
}

/// Some bytes that tell which value they are.
fn bytes(value: u64) -> Vec<u8> {
    let mut dice = Dice::new(value);
    (0..1 + value % 4000).map(|_| dice.below(256) as u8).collect()
}
