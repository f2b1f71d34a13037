//! Deployments and provisioned throughput: made, changed, listed, asked, and in the way of a deletion.

use serde_json::{Value, json};
use tunesmith::app::door::{Pass, Place};
use tunesmith::store::Db;
use tunesmith::store::custom_models::CustomModel;

use crate::support::http::Reply;
use crate::support::{TINY, TestApp, segment, until, with_app, with_settings};

const DEPLOYMENTS: &str = "/model-customization/custom-model-deployments";
const THROUGHPUT: &str = "/provisioned-model-throughput";

/// Deploys a model, and gives the deployment's ARN once it is settled.
async fn deploy(app: &TestApp, name: &str, model: &CustomModel) -> String {
    let body = json!({ "modelDeploymentName": name, "modelArn": model.arn, "description": "for tests" });
    let reply = app.call("POST", DEPLOYMENTS, Some(&body)).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    let arn = reply.json()["customModelDeploymentArn"].as_str().unwrap().to_string();
    until("the deployment is made", async || {
        let there = get(app, DEPLOYMENTS, &arn).await.json();
        assert!(["Creating", "Active", "Failed"].contains(&there["status"].as_str().unwrap()), "{there}");
        (there["status"] != "Creating").then_some(())
    })
    .await;
    arn
}

/// Puts another model behind a deployment; how that went.
async fn redeploy(app: &TestApp, name: &str, model: &CustomModel) -> Value {
    let body = json!({ "modelArn": model.arn });
    let reply = app.call("PATCH", &format!("{DEPLOYMENTS}/{name}"), Some(&body)).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    until("the update ends", async || {
        let there = get(app, DEPLOYMENTS, name).await.json();
        assert_eq!(there["status"], "Active", "an update never takes it out of service");
        assert_eq!(there["updateDetails"]["modelArn"], json!(model.arn));
        (there["updateDetails"]["updateStatus"] != "Updating").then_some(there)
    })
    .await
}

/// What a model says, always the same.
async fn said(app: &TestApp, model: &str) -> Reply {
    let body = json!({ "prompt": "the cat", "max_gen_len": 16, "temperature": 0.0 });
    app.call("POST", &format!("/model/{}/invoke", segment(model)), Some(&body)).await
}

async fn provision(app: &TestApp, name: &str, model: &str) -> Reply {
    let body = json!({ "provisionedModelName": name, "modelId": model, "modelUnits": 1 });
    app.call("POST", THROUGHPUT, Some(&body)).await
}

async fn get(app: &TestApp, collection: &str, identifier: &str) -> Reply {
    app.call("GET", &format!("{collection}/{}", segment(identifier)), None).await
}

fn kind(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.error())
}

#[test]
fn a_deployment_is_active_found_by_arn_and_name_and_moves_to_another_model() {
    with_app(async |app| {
        let (first, second) = (app.model("first").await, app.model("second").await);
        let arn = deploy(&app, "chat", &first).await;
        assert!(arn.starts_with("arn:aws:bedrock:us-east-1:000000000000:custom-model-deployment/"), "{arn}");
        for identifier in [arn.as_str(), "chat"] {
            let there = get(&app, DEPLOYMENTS, identifier).await.json();
            assert_eq!(there["status"], "Active");
            assert_eq!(there["modelArn"], json!(first.arn));
            assert_eq!(there["description"], "for tests");
            assert!(there["lastUpdatedAt"].is_string() && there.get("updateDetails").is_none(), "{there}");
        }
        let there = redeploy(&app, "chat", &second).await;
        assert_eq!((&there["modelArn"], &there["customModelDeploymentArn"]), (&json!(second.arn), &json!(arn)));
        assert_eq!(there["updateDetails"], json!({ "modelArn": second.arn, "updateStatus": "UpdateCompleted" }));

        // A model that is served stays; the one it moved away from may go.
        let path = |model: &CustomModel| format!("/custom-models/{}", segment(&model.arn));
        assert_eq!(kind(&app.call("DELETE", &path(&second), None).await), (400, "ConflictException"));
        assert_eq!(app.call("DELETE", &path(&first), None).await.status, 200);
        assert_eq!(app.call("DELETE", &format!("{DEPLOYMENTS}/chat"), None).await.status, 200);
        assert_eq!(kind(&get(&app, DEPLOYMENTS, "chat").await), (404, "ResourceNotFoundException"));
        assert_eq!(app.call("DELETE", &path(&second), None).await.status, 200);
        app
    });
}

#[test]
fn what_stands_against_a_deployment_is_a_validation_error_and_what_is_missing_is_not_found() {
    with_app(async |app| {
        let model = app.model("m").await;
        deploy(&app, "taken", &model).await;
        let body = json!({ "modelDeploymentName": "taken", "modelArn": model.arn, "clientRequestToken": "t" });
        let reply = app.call("POST", DEPLOYMENTS, Some(&body)).await;
        assert_eq!(kind(&reply), (400, "ValidationException"));
        assert_eq!(reply.message(), "The provided deployment name is currently in use.");

        let absent = format!("{}aaaaaaaaaaaa", &model.arn[..model.arn.len() - 12]);
        let body = json!({ "modelDeploymentName": "other", "modelArn": absent });
        assert_eq!(kind(&app.call("POST", DEPLOYMENTS, Some(&body)).await), (404, "ResourceNotFoundException"));
        let stranger = app.stranger().await;
        let body = json!({ "modelDeploymentName": "other", "modelArn": model.arn });
        let reply = app.call_as(&stranger, "POST", DEPLOYMENTS, Some(&body)).await;
        assert_eq!(kind(&reply), (404, "ResourceNotFoundException"));
        for method in ["GET", "DELETE"] {
            let reply = app.call_as(&stranger, method, &format!("{DEPLOYMENTS}/taken"), None).await;
            assert_eq!(kind(&reply), (404, "ResourceNotFoundException"));
        }
        app
    });
}

#[test]
fn the_same_token_serves_once() {
    with_app(async |app| {
        let model = app.model("m").await;
        let bodies = [
            (DEPLOYMENTS, 202, json!({ "modelDeploymentName": "a", "modelArn": model.arn, "clientRequestToken": "t" })),
            (
                THROUGHPUT,
                201,
                json!({ "provisionedModelName": "a", "modelId": model.name, "modelUnits": 1, "clientRequestToken": "t" }),
            ),
        ];
        for (path, status, mut body) in bodies {
            let first = app.call("POST", path, Some(&body)).await;
            let second = app.call("POST", path, Some(&body)).await;
            assert_eq!((first.status, second.status), (status, status), "{}", second.text());
            assert_eq!(first.json(), second.json());
            body["tags"] = json!([{ "key": "a", "value": "b" }]);
            assert_eq!(kind(&app.call("POST", path, Some(&body)).await), (400, "ValidationException"));
        }
        app
    });
}

#[test]
fn throughput_serves_foundation_and_custom_models_and_moves_within_one_base() {
    with_app(async |app| {
        let (first, second) = (app.model("first").await, app.model("second").await);
        let foundation = format!("arn:aws:bedrock:us-east-1::foundation-model/{TINY}");
        let base = provision(&app, "base", TINY).await;
        assert_eq!(base.status, 201, "{}", base.text());
        let there = get(&app, THROUGHPUT, "base").await.json();
        assert_eq!((&there["modelArn"], &there["foundationModelArn"]), (&json!(foundation), &json!(foundation)));

        let arn =
            provision(&app, "custom", &first.name).await.json()["provisionedModelArn"].as_str().unwrap().to_string();
        let there = get(&app, THROUGHPUT, &arn).await.json();
        assert_eq!((there["status"].as_str(), there["modelUnits"].as_i64()), (Some("InService"), Some(1)));
        assert_eq!((&there["modelArn"], &there["desiredModelArn"]), (&json!(first.arn), &json!(first.arn)));
        assert!(there.get("commitmentDuration").is_none() && there.get("failureMessage").is_none(), "{there}");

        let update = async |name: &str, body: Value| {
            app.call("PATCH", &format!("{THROUGHPUT}/{}", segment(name)), Some(&body)).await
        };
        assert_eq!(
            update("custom", json!({ "desiredProvisionedModelName": "base" })).await.error(),
            "ValidationException"
        );
        assert_eq!(update("base", json!({ "desiredModelId": first.arn })).await.error(), "ValidationException");
        let reply =
            update("custom", json!({ "desiredModelId": second.arn, "desiredProvisionedModelName": "renamed" })).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(get(&app, THROUGHPUT, "renamed").await.json()["modelArn"], json!(second.arn));
        assert_eq!(get(&app, THROUGHPUT, "custom").await.status, 404);
        assert_eq!(
            app.call("DELETE", &format!("/custom-models/{}", second.name), None).await.error(),
            "ConflictException"
        );
        assert_eq!(update("renamed", json!({ "desiredModelId": TINY })).await.status, 200);
        assert_eq!(app.call("DELETE", &format!("/custom-models/{}", second.name), None).await.status, 200);
        assert_eq!(app.call("DELETE", &format!("{THROUGHPUT}/{}", segment(&arn)), None).await.status, 200);
        assert_eq!(get(&app, THROUGHPUT, &arn).await.status, 404);
        app
    });
}

#[test]
fn a_commitment_is_kept_until_it_ends() {
    with_app(async |app| {
        let body = json!({ "provisionedModelName": "bought", "modelId": TINY, "modelUnits": 1, "commitmentDuration": "OneMonth" });
        assert_eq!(app.call("POST", THROUGHPUT, Some(&body)).await.status, 201);
        let there = get(&app, THROUGHPUT, "bought").await.json();
        assert_eq!(there["commitmentDuration"], "OneMonth");
        let until = there["commitmentExpirationTime"].as_str().unwrap().to_string();
        let refused = app.call("DELETE", &format!("{THROUGHPUT}/bought"), None).await;
        assert_eq!(kind(&refused), (400, "ConflictException"));
        assert!(refused.message().contains(&until), "{}", refused.message());
        app.service.app.clock.jump(std::time::Duration::from_secs(32 * 24 * 3600), false);
        assert_eq!(app.call("DELETE", &format!("{THROUGHPUT}/bought"), None).await.status, 200);
        app
    });
}

#[test]
fn listings_are_paged_and_filtered_by_state_model_and_name() {
    with_app(async |app| {
        let (first, second) = (app.model("first").await, app.model("second").await);
        for n in 0..3 {
            // Rows of one millisecond come in no order that a test could know.
            app.service.app.clock.jump(std::time::Duration::from_millis(1), false);
            deploy(&app, &format!("Chat-{n}"), &first).await;
            assert_eq!(provision(&app, &format!("Chat-{n}"), &first.arn).await.status, 201);
        }
        app.service.app.clock.jump(std::time::Duration::from_millis(1), false);
        deploy(&app, "other", &second).await;
        assert_eq!(provision(&app, "other", TINY).await.status, 201);
        let lists = [
            (DEPLOYMENTS, "modelDeploymentSummaries", "customModelDeploymentName", "Active", "Failed"),
            (
                "/provisioned-model-throughputs",
                "provisionedModelSummaries",
                "provisionedModelName",
                "InService",
                "Updating",
            ),
        ];
        for (path, member, name, all, none) in lists {
            let names = async |query: &str| -> Vec<String> {
                let reply = app.call("GET", &format!("{path}?{query}"), None).await;
                assert_eq!(reply.status, 200, "{}", reply.text());
                let items = reply.json()[member].as_array().unwrap().clone();
                items.iter().map(|item| item[name].as_str().unwrap().to_string()).collect()
            };
            assert_eq!(names("").await, ["other", "Chat-2", "Chat-1", "Chat-0"], "newest first");
            assert_eq!(names("sortOrder=Ascending&nameContains=chat").await, ["Chat-0", "Chat-1", "Chat-2"]);
            assert_eq!(names(&format!("statusEquals={all}")).await.len(), 4);
            assert_eq!(names(&format!("statusEquals={none}")).await.len(), 0);
            assert_eq!(names(&format!("modelArnEquals={}", segment(&first.arn))).await.len(), 3);

            let page = app.call("GET", &format!("{path}?maxResults=3"), None).await.json();
            let token = segment(page["nextToken"].as_str().unwrap());
            assert_eq!(names(&format!("maxResults=3&nextToken={token}")).await, ["Chat-0"]);
            let other =
                app.call("GET", &format!("{path}?maxResults=3&statusEquals={all}&nextToken={token}"), None).await;
            assert_eq!(kind(&other), (400, "ValidationException"), "a token is bound to its filters");
            let stranger = app.stranger_called("AKIAOTHER").await;
            let reply = app.call_as(&stranger, "GET", path, None).await;
            assert_eq!(reply.json()[member], json!([]));
        }
        app
    });
}

#[test]
fn a_model_is_asked_through_what_serves_it() {
    with_app(async |app| {
        let base = provision(&app, "base", TINY).await.json()["provisionedModelArn"].as_str().unwrap().to_string();
        let body = json!({ "prompt": "a", "max_gen_len": 2, "temperature": 0.0 });
        let direct = app.call("POST", &format!("/model/{}/invoke", segment(TINY)), Some(&body)).await;
        assert_eq!(direct.status, 200, "{}", direct.text());
        for id in [base.as_str(), "base"] {
            let reply = app.call("POST", &format!("/model/{}/invoke", segment(id)), Some(&body)).await;
            assert_eq!((reply.status, reply.json()), (200, direct.json()), "{id}");
        }
        let model = app.model("m").await;
        let arn = deploy(&app, "chat", &model).await;
        let direct = said(&app, &model.arn).await;
        assert_ne!(direct.json(), said(&app, TINY).await.json(), "the adapter changes the answer");
        for id in [arn.as_str(), "chat"] {
            assert_eq!(said(&app, id).await.json(), direct.json(), "{id}");
        }
        app
    });
}

#[test]
fn a_deployment_that_cannot_be_served_fails_with_the_reason_and_an_update_to_such_a_model_changes_nothing() {
    with_app(async |app| {
        let (model, lost) = (app.model("kept").await, app.model_of("lost", None).await);
        deploy(&app, "failed", &lost).await;
        let there = get(&app, DEPLOYMENTS, "failed").await.json();
        assert_eq!(there["status"], "Failed", "{there}");
        assert!(there["failureMessage"].as_str().unwrap().contains(&lost.artifact_uri), "{there}");
        let listed = app.call("GET", &format!("{DEPLOYMENTS}?statusEquals=Failed"), None).await.json();
        assert_eq!(listed["modelDeploymentSummaries"][0]["failureMessage"], there["failureMessage"]);
        let refused = said(&app, "failed").await;
        assert_eq!(kind(&refused), (429, "ModelNotReadyException"));
        assert!(refused.message().contains(&lost.artifact_uri), "{}", refused.message());
        let body = json!({ "modelArn": model.arn });
        let reply = app.call("PATCH", &format!("{DEPLOYMENTS}/failed"), Some(&body)).await;
        assert_eq!(kind(&reply), (400, "ValidationException"));

        deploy(&app, "chat", &model).await;
        let before = said(&app, "chat").await.json();
        let there = redeploy(&app, "chat", &lost).await;
        assert_eq!(there["updateDetails"]["updateStatus"], "UpdateFailed", "{there}");
        assert!(there["failureMessage"].as_str().unwrap().contains(&lost.artifact_uri), "{there}");
        assert_eq!((&there["modelArn"], said(&app, "chat").await.json()), (&json!(model.arn), before));
        // What serves nothing holds nothing.
        assert_eq!(app.call("DELETE", &format!("/custom-models/{}", segment(&lost.arn)), None).await.status, 200);
        assert_eq!(app.call("DELETE", &format!("{DEPLOYMENTS}/failed"), None).await.status, 200);
        let there = redeploy(&app, "chat", &model).await;
        assert_eq!(there["updateDetails"]["updateStatus"], "UpdateCompleted");
        assert!(there.get("failureMessage").is_none(), "{there}");
        app
    });
}

/// A deployment that `strikes` attempts to load were broken off of, as a process that dies each time leaves it.
async fn broken_off(app: &TestApp, name: &str, model: &CustomModel, strikes: i64) {
    const SQL: &str = "UPDATE model_deployments SET status = 'Creating', strikes = $2 WHERE name = $1";
    deploy(app, name, model).await;
    match &app.service.app.db {
        Db::Postgres(pool) => drop(sqlx::query(SQL).bind(name).bind(strikes).execute(pool).await.unwrap()),
        Db::Sqlite(pool) => drop(sqlx::query(SQL).bind(name).bind(strikes).execute(pool).await.unwrap()),
    }
}

#[test]
fn a_deployment_whose_loading_ended_the_process_each_time_fails_by_name_and_holds_up_no_other() {
    with_app(async |app| {
        let model = app.model("m").await;
        broken_off(&app, "worn", &model, 3).await;
        broken_off(&app, "twice", &model, 2).await;
        let ended = async |name| {
            until("it ends", async || {
                let there = get(&app, DEPLOYMENTS, name).await.json();
                (there["status"] != "Creating").then_some(there)
            })
            .await
        };
        let worn = ended("worn").await;
        assert_eq!(worn["status"], "Failed", "{worn}");
        let message = worn["failureMessage"].as_str().unwrap();
        assert!(message.contains("ended unexpectedly each of the 3 times"), "{message}");
        assert_eq!(ended("twice").await["status"], "Active");
        // A success clears what was counted.
        broken_off(&app, "again", &model, 0).await;
        assert_eq!(ended("again").await["status"], "Active");
        assert_eq!(app.call("DELETE", &format!("{DEPLOYMENTS}/worn"), None).await.status, 200);
        app
    });
}

#[test]
fn a_deployments_model_is_swapped_under_requests_and_none_is_dropped() {
    with_app(async |app| {
        let (first, second) = (app.model("first").await, app.model_of("second", Some("methods/head/after")).await);
        deploy(&app, "chat", &first).await;
        let (old, new) = (said(&app, &first.arn).await.json(), said(&app, &second.arn).await.json());
        assert_ne!(old["generation"], new["generation"], "the two can be told apart");

        // Each asks on and on until it hears the new model; whatever was begun before is answered by the old one.
        let heard = std::cell::Cell::new(0);
        let ask = async || {
            loop {
                let reply = said(&app, "chat").await;
                assert_eq!(reply.status, 200, "{}", reply.text());
                if reply.json() == new {
                    return assert_eq!(said(&app, "chat").await.json(), new, "and it stays");
                }
                assert_eq!(reply.json(), old);
                heard.set(heard.get() + 1);
            }
        };
        let update = async {
            until("the old model is heard", async || (heard.get() >= 3).then_some(())).await;
            let there = redeploy(&app, "chat", &second).await;
            assert_eq!(there["updateDetails"]["updateStatus"], "UpdateCompleted");
            assert_eq!(
                said(&app, "chat").await.json(),
                new,
                "what is asked after the update is done hears the new model"
            );
        };
        tokio::join!(ask(), ask(), ask(), update);
        // The model that nobody is sent to any more can go.
        assert_eq!(app.call("DELETE", &format!("/custom-models/{}", segment(&first.arn)), None).await.status, 200);
        assert_eq!(said(&app, "chat").await.json(), new);
        app
    });
}

#[test]
fn provisioned_throughput_has_places_of_its_own_and_gives_them_back() {
    with_settings(&["--answers=8"], async |app| {
        let door = app.service.app.door.clone();
        let full = |pass: &Pass| -> Vec<Place> { std::iter::from_fn(|| door.enter(pass)).collect() };
        let body = json!({ "provisionedModelName": "own", "modelId": TINY, "modelUnits": 3 });
        let reply = app.call("POST", THROUGHPUT, Some(&body)).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        let arn = reply.json()["provisionedModelArn"].as_str().unwrap().to_string();

        // Full for everybody, and not for whom places are kept.
        let taken = full(&Pass::OnDemand { reserved: 3 });
        assert_eq!(taken.len(), 5);
        assert_eq!(kind(&said(&app, TINY).await), (429, "ThrottlingException"));
        assert_eq!(said(&app, &arn).await.status, 200);
        let stream = json!({ "prompt": "a", "max_gen_len": 2 });
        let stream =
            app.call("POST", &format!("/model/{}/invoke-with-response-stream", segment(&arn)), Some(&stream)).await;
        assert_eq!(stream.status, 200);
        drop(taken);

        // And the other way round.
        let id = arn.rsplit('/').next().unwrap().to_string();
        let taken = full(&Pass::Provisioned { throughput: id, units: 3 });
        assert_eq!(kind(&said(&app, &arn).await), (429, "ThrottlingException"));
        assert_eq!(said(&app, TINY).await.status, 200);
        drop(taken);

        // Another name keeps the places, more than there are cannot be had, and a deletion gives them back.
        let renamed = json!({ "desiredProvisionedModelName": "renamed" });
        assert_eq!(app.call("PATCH", &format!("{THROUGHPUT}/own"), Some(&renamed)).await.status, 200);
        let more = json!({ "provisionedModelName": "more", "modelId": TINY, "modelUnits": 5 });
        let refused = app.call("POST", THROUGHPUT, Some(&more)).await;
        assert_eq!(kind(&refused), (400, "ServiceQuotaExceededException"));
        assert!(refused.message().contains("4 model units left"), "{}", refused.message());
        let taken = full(&Pass::OnDemand { reserved: 3 });
        assert_eq!(app.call("DELETE", &format!("{THROUGHPUT}/renamed"), None).await.status, 200);
        assert_eq!(said(&app, TINY).await.status, 200, "the places are everybody's again");
        drop(taken);
        assert_eq!(app.call("POST", THROUGHPUT, Some(&more)).await.status, 201);
        app
    });
}

#[test]
fn an_installed_foundation_model_is_available() {
    with_app(async |app| {
        let reply = app.call("GET", &format!("/foundation-model-availability/{}", segment(TINY)), None).await;
        let expected = json!({
            "modelId": TINY,
            "agreementAvailability": { "status": "AVAILABLE" },
            "authorizationStatus": "AUTHORIZED",
            "entitlementAvailability": "AVAILABLE",
            "regionAvailability": "AVAILABLE",
        });
        assert_eq!((reply.status, reply.json()), (200, expected));
        let reply = app.call("GET", "/foundation-model-availability/no.such-model", None).await;
        assert_eq!(kind(&reply), (404, "ResourceNotFoundException"));
        app
    });
}
