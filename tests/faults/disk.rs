//! A full disk stops one job, not the service: a disk of 64 MiB is filled at every step of a job.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tunesmith::objects::Uri;
use tunesmith::store::{Status, custom_models};

use super::points::Points;
use super::process::{ACCOUNT, Backend, House, until, within};
use super::{ADAPTER, METRICS};
use crate::jobs::database::block_on;
use crate::support::promise::{Dice, Promise, full, seed};

const STEPS: usize = 300;
/// Points that a short run tries.
const SOME: usize = 1;
/// How soon a job ends whose worker has no space left; a short run does not wait that long.
const NAMED_WITHIN: u64 = 90;
const LOOKED_AT_FOR: u64 = 15;

/// A file system of 64 MiB, unmounted when dropped.
struct Disk {
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl Disk {
    /// Mounts it; `None`, loudly, where this process may not.
    fn mount() -> Option<Self> {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("disk");
        std::fs::create_dir(&folder).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&folder).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self { folder, _parent: parent });
        }
        // Only root may; there is nothing that fills up as a disk does without a mount.
        println!("NOT RUN: a tmpfs cannot be mounted here");
        None
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = std::fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        for piece in [1 << 20, 4096, 1] {
            let zeros = vec![0; piece];
            while file.write_all(&zeros).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

#[test]
fn a_disk_that_fills_at_any_step_fails_one_job_by_name_and_the_next_completes() {
    filled(Backend::Embedded);
}

#[test]
fn a_workers_disk_that_fills_at_any_step_fails_one_job_by_name_and_the_next_completes() {
    filled(Backend::Separate);
}

#[test]
fn a_service_whose_disk_is_full_starts_so_that_objects_can_be_removed() {
    let Some(disk) = Disk::mount() else { return };
    block_on(async {
        let folder = tempfile::tempdir_in(&disk.folder).unwrap();
        let house = House::in_folder(folder, Backend::Embedded).await.unwrap();
        let (logs, ballast) = (tempfile::tempdir().unwrap(), Uri::new(&house.bucket, "ballast"));
        let start = || house.start_logging(&logs.path().join("log"), &["serve"]);
        let process = start();
        house.upload_data().await;
        house.put("ballast", &"x".repeat(8 << 20)).await;
        assert_eq!(process.terminate().await.code(), Some(0));
        disk.fill();
        let process = start();
        until("the object store answers", async || house.objects.head(&ballast).await.ok()).await;
        assert!(process.log().contains("Free space"), "the log says what to do");
        house.objects.delete(&ballast).await.unwrap();
        until("the API answers", async || tokio::net::TcpStream::connect(house.api()).await.ok()).await;
        let job = house.create(&house.request("after", STEPS)).await;
        house.completed(&job).await;
        assert_eq!(process.terminate().await.code(), Some(0));
    });
}

fn filled(backend: Backend) {
    let Some(disk) = Disk::mount() else { return };
    block_on(async {
        let folder = tempfile::tempdir_in(&disk.folder).unwrap();
        let Some(mut house) = House::in_folder(folder, backend).await else { return };
        let schema = house.take_schema();
        rounds(&disk, house).await;
        if let Some(schema) = schema {
            schema.remove().await;
        }
    });
}

async fn rounds(disk: &Disk, mut house: House) {
    let seed = seed();
    let mut promise = Promise::new(10, "a_disk_that_fills_at_any_step", house.on_what()).seeded(seed);
    house.settings.push(("TUNESMITH_LEASE_SECONDS".into(), "10".into()));
    let orders = tempfile::tempdir().unwrap();
    let Some(points) = Points::in_folder(&mut house, orders.path()) else { return };
    let mut process = house.start_logging(&orders.path().join("log"), &["serve"]);
    house.upload_data().await;
    let reference = house.create(&house.request("reference", STEPS)).await;
    house.completed(&reference).await;
    let (adapter, metrics) = (house.output(&reference, ADAPTER).await, house.output(&reference, METRICS).await);
    let reached = points.reached();
    let mut chosen: Vec<String> = reached.into_iter().filter(|point| point.starts_with("before.")).collect();
    let mut dice = Dice::new(seed);
    while !full() && chosen.len() > SOME {
        chosen.remove(dice.below(chosen.len() as u64) as usize);
    }
    let (mut failed, mut completed, mut late) = (0, 0, 0);
    for (n, point) in chosen.iter().enumerate() {
        println!("full {point}");
        points.order("wait", point);
        let spec = house.create(&house.request(&format!("full-{n}"), STEPS)).await;
        points.held(point).await;
        disk.fill();
        points.take_back("wait", point);
        // The database may lie on the full disk: then the end is written when there is space again.
        let mut ended = false;
        let patience = if full() { NAMED_WITHIN } else { LOOKED_AT_FOR };
        for _ in 0..patience * 2 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if house.job(&spec).await.status.is_end() {
                ended = true;
                break;
            }
        }
        late += usize::from(!ended);
        assert!(process.is_alive(), "the service stands: {point}");
        disk.free();
        let job = within(Duration::from_secs(120), &format!("the job of {point} ends"), async || {
            Some(house.job(&spec).await).filter(|job| job.status.is_end())
        })
        .await;
        let model = custom_models::find(&house.db, ACCOUNT, &spec.output_model_name).await.unwrap();
        match job.status {
            Status::Completed => {
                completed += 1;
                assert!(house.output(&spec, ADAPTER).await == adapter, "{point}: the adapter's bits differ");
                assert!(house.output(&spec, METRICS).await == metrics, "{point}: the metrics differ");
            }
            _ => {
                failed += 1;
                let message = job.failure_message.unwrap_or_default();
                assert!(message.contains("no space left"), "{point}: {message:?}");
                assert!(model.is_none(), "{point}: a failed job has no model");
            }
        }
        let next = house.create(&house.request(&format!("next-{n}"), STEPS)).await;
        house.completed(&next).await;
        assert!(house.output(&next, ADAPTER).await == adapter, "after {point}: the adapter's bits differ");
    }
    promise.tried(format!("a tmpfs of 64 MiB filled to the last byte before each of {} steps", chosen.len()));
    // Only a database on the full disk may keep a job from its end.
    assert!(late == 0 || !full() || house.backend() == Backend::Embedded, "{late} jobs waited for ever for space");
    promise.found(format!(
        "{failed} jobs Failed with \"no space left\", {completed} completed with equal bits, {late} of them only when \
         space came back; each next job completed; one process all the time"
    ));
    promise.held();
}
