//! What `docker/` promises, held where no Docker engine is at hand: the compose file is parsed and its
//! service is started natively, by the command line and environment that the file gives it, against a real
//! Postgres and an S3 server that is not ours.

mod compose;
mod native;

use crate::jobs::database::variable;

/// Says what is missing; fails where the run insists on everything.
pub(crate) fn missing(what: &str) {
    assert!(variable("TEST_REQUIRE_ALL").as_deref() != Some("1"), "TEST_REQUIRE_ALL=1, but {what} is missing");
    eprintln!("not run: {what} is missing");
}

#[test]
fn every_image_is_pinned_and_can_be_replaced() {
    let Some(file) = compose::parsed() else { return };
    for (name, service) in file["services"].as_object().unwrap() {
        let image = service["image"].as_str().unwrap();
        assert!(
            image.starts_with("${") && image.contains("_IMAGE:-"),
            "{name}: {image} cannot be replaced by a variable"
        );
        let image = compose::interpolated(image);
        let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
        assert!(tag.contains('.') && tag != "latest", "{name}: {image} is not pinned");
    }
}

#[test]
fn the_service_waits_for_its_database_and_its_bucket() {
    let Some(file) = compose::parsed() else { return };
    let services = &file["services"];
    let waits = &services["tunesmith"]["depends_on"];
    assert_eq!(waits["postgres"]["condition"], "service_healthy");
    assert_eq!(waits["bucket"]["condition"], "service_completed_successfully");
    assert_eq!(services["bucket"]["depends_on"]["minio"]["condition"], "service_healthy");
    for name in ["tunesmith", "postgres", "minio"] {
        assert!(services[name]["healthcheck"]["test"].is_array(), "{name} has a health check");
        assert!(!services[name]["volumes"].as_array().unwrap().is_empty(), "{name} keeps its data in a volume");
    }
}

#[test]
fn the_image_runs_as_an_ordinary_user_without_python() {
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docker/Dockerfile")).unwrap();
    let run = file.split("\nFROM ").last().unwrap();
    assert!(run.contains("\nUSER tunesmith\n"));
    assert!(run.contains("\nHEALTHCHECK "));
    assert!(!run.contains("python") && !run.contains("apt-get"), "nothing is installed into the running image");
}
