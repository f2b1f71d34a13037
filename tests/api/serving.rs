//! Deployments and provisioned throughput: made, changed, listed, asked, and in the way of a deletion.

use serde_json::{Value, json};
use tunesmith::store::custom_models::CustomModel;

use crate::support::http::Reply;
use crate::support::{TINY, TestApp, segment, with_app};

const DEPLOYMENTS: &str = "/model-customization/custom-model-deployments";
const THROUGHPUT: &str = "/provisioned-model-throughput";

async fn deploy(app: &TestApp, name: &str, model: &CustomModel) -> String {
    let body = json!({ "modelDeploymentName": name, "modelArn": model.arn, "description": "for tests" });
    let reply = app.call("POST", DEPLOYMENTS, Some(&body)).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    reply.json()["customModelDeploymentArn"].as_str().unwrap().to_string()
}

async fn provision(app: &TestApp, name: &str, model: &str) -> Reply {
    let body = json!({ "provisionedModelName": name, "modelId": model, "modelUnits": 2 });
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
        let body = json!({ "modelArn": second.arn });
        let reply = app.call("PATCH", &format!("{DEPLOYMENTS}/chat"), Some(&body)).await;
        assert_eq!((reply.status, &reply.json()["customModelDeploymentArn"]), (202, &json!(arn)));
        let there = get(&app, DEPLOYMENTS, &arn).await.json();
        assert_eq!(there["modelArn"], json!(second.arn));
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
        assert_eq!((there["status"].as_str(), there["modelUnits"].as_i64()), (Some("InService"), Some(2)));
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
        // The model's files were never written: what is asked for is the model behind the deployment.
        let model = app.model("m").await;
        let arn = deploy(&app, "chat", &model).await;
        let reply = app.call("POST", &format!("/model/{}/invoke", segment(&arn)), Some(&body)).await;
        assert_eq!(kind(&reply), (424, "ModelErrorException"));
        assert!(reply.message().contains(&model.artifact_uri), "{}", reply.message());
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
