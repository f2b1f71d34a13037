//! A Lambda function on a socket: the invocation API as the service calls it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

/// Grades one sample in the n-th invocation; `None` is an invocation that fails.
type Score = dyn Fn(usize, &Value) -> Option<f64> + Send + Sync;

struct Inner {
    invocations: AtomicUsize,
    graded: AtomicUsize,
    score: Box<Score>,
}

/// It answers until it is dropped.
pub(crate) struct Function {
    pub(crate) url: String,
    inner: Arc<Inner>,
    _runtime: tokio::runtime::Runtime,
}

async fn invoked(State(inner): State<Arc<Inner>>, Json(events): Json<Vec<Value>>) -> (StatusCode, String) {
    let n = inner.invocations.fetch_add(1, Ordering::SeqCst);
    let mut entries = Vec::new();
    for event in &events {
        let Some(score) = (inner.score)(n, event) else { return (StatusCode::BAD_GATEWAY, String::new()) };
        // As Python's json.dumps writes it, whatever JSON says.
        let score = if score.is_nan() { "NaN".to_string() } else { score.to_string() };
        entries.push(format!(
            "{{\"id\": {}, \"aggregate_reward_score\": {score}, \"metrics_list\": {}}}",
            event["id"],
            json!([{ "name": "exact", "value": 1.0, "type": "Reward" }])
        ));
    }
    inner.graded.fetch_add(events.len(), Ordering::SeqCst);
    (StatusCode::OK, format!("[{}]", entries.join(", ")))
}

impl Function {
    pub(crate) fn start(score: impl Fn(usize, &Value) -> Option<f64> + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let score = Box::new(score);
        let inner = Arc::new(Inner { invocations: AtomicUsize::new(0), graded: AtomicUsize::new(0), score });
        let router = Router::new()
            .route("/2015-03-31/functions/{function}/invocations", post(invoked))
            .with_state(Arc::clone(&inner));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, inner, _runtime: runtime }
    }

    /// How many samples it graded.
    pub(crate) fn graded(&self) -> usize {
        self.inner.graded.load(Ordering::SeqCst)
    }
}
