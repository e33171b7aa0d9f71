//! The live page, which shows the events of [`mod@super::events`].

use axum::Router;
use axum::http::header;
use axum::routing::{MethodRouter, get};

/// Nothing is loaded from elsewhere, and only the page's own script runs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let html = file("text/html; charset=utf-8", include_str!("page.html"));
    let css = file("text/css; charset=utf-8", include_str!("page.css"));
    let script = file("text/javascript; charset=utf-8", include_str!("page.js"));
    Router::new()
        .route("/", html)
        .route("/page.css", css)
        .route("/page.js", script)
}

fn file<S: Clone + Send + Sync + 'static>(
    content_type: &'static str,
    content: &'static str,
) -> MethodRouter<S> {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The next response may be that of a worker of another version.
        (header::CACHE_CONTROL, "no-store"),
    ];
    get((headers, content))
}
