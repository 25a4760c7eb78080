//! Who is let in, and which pages a browser may call from.

use powerband_server::{ROUTES, ServerConfig, bind};

use crate::support::client::{call, raw};
use crate::support::{Options, TestServer};

async fn with(configure: impl FnOnce(&mut ServerConfig)) -> TestServer {
    let mut options = Options::default();
    configure(&mut options.config);
    TestServer::start(options).await
}

async fn guarded() -> TestServer {
    with(|config| config.api_keys = vec!["right".to_owned(), "second".to_owned()]).await
}

#[tokio::test]
async fn every_route_but_health_asks_for_a_key() {
    let server = guarded().await;
    for route in ROUTES {
        let path = route.path.replace("{id}", "echo");
        for method in [
            "GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "BREW",
        ] {
            let public = path == "/health" && ["GET", "HEAD"].contains(&method);
            for header in [
                "",
                "Authorization: Bearer wrong\r\n",
                "Authorization: right\r\n",
                "X-Api-Key: right\r\n",
            ] {
                let reply = call(server.address, method, &path, header).await;
                if public {
                    assert_eq!(reply.status, 200, "{method} {path}");
                } else {
                    assert_eq!(reply.status, 401, "{method} {path} {header}");
                    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
                    if method != "HEAD" {
                        reply.error(401);
                    }
                }
            }
            for key in ["right", "second"] {
                let header = format!("Authorization: Bearer {key}\r\n");
                let reply = call(server.address, method, &path, &header).await;
                assert_ne!(reply.status, 401, "{method} {path}");
                assert_eq!(
                    reply.status == 405,
                    !route_takes(route.method, method),
                    "{method} {path}"
                );
            }
        }
    }
    assert_eq!(ROUTES.iter().filter(|route| route.public).count(), 1);
}

fn route_takes(route: &str, method: &str) -> bool {
    route == method || (route == "GET" && method == "HEAD")
}

/// Ways to write a path that a guard and a router may read differently.
#[tokio::test]
async fn no_spelling_of_a_path_goes_around_the_guard() {
    let server = guarded().await;
    for target in [
        "//v1/models",
        "/./v1/models",
        "/health/../v1/models",
        "/%2e/v1/models",
        "/v1%2fmodels",
        "/v1/%6dodels",
        "/V1/models",
        "/v1/models?x=/health",
        "/v1/models#/health",
        "/health/",
        "/health/v1/models",
        "/health%00",
        "/health;/v1/models",
        "http://test/v1/models",
        "http://test/health/../v1/models",
        "http://health/metrics",
        "/nothing",
        "/",
        "*",
        "/metrics?/health",
        "/invocations",
        "/docs",
    ] {
        for method in ["GET", "OPTIONS", "HEAD"] {
            let reply = call(server.address, method, target, "").await;
            assert!(
                [400, 401].contains(&reply.status),
                "{method} {target}: {}",
                reply.status
            );
        }
    }
    for host in [
        "a/b?c",
        "/health",
        "x/health?",
        "test\r\nHost: /health",
        "health",
        "[::1]/health?",
    ] {
        let request =
            format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let reply = raw(server.address, request).await;
        assert!(
            [400, 401].contains(&reply.status),
            "{host}: {}",
            reply.status
        );
    }
    let reply = raw(server.address, "GET /v1/models HTTP/1.0\r\n\r\n").await;
    assert_eq!(reply.status, 401);
    // The absolute form of the public path is the public path.
    assert_eq!(
        call(server.address, "GET", "http://test/health", "")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn an_empty_key_is_no_key() {
    let config = ServerConfig {
        port: 0,
        api_keys: vec![String::new()],
        ..ServerConfig::default()
    };
    let bound = bind(&config).await.unwrap();
    let plain = TestServer::plain().await;
    let model = powerband_server::ModelContext {
        served_names: vec!["m".to_owned()],
        root: String::new(),
        vocab_size: 1,
        eos_tokens: Vec::new(),
        tokenizer: None,
        chat_template: None,
        gpus: None,
    };
    let error = bound
        .serve(
            plain.engine.clone(),
            model,
            std::future::pending(),
            std::time::Duration::ZERO,
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("--api-key"), "{error}");
}

#[tokio::test]
async fn no_page_may_call_unless_its_origin_was_named() {
    let preflight = "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n";
    let server = TestServer::plain().await;
    for (method, path) in [
        ("GET", "/v1/models"),
        ("OPTIONS", "/v1/completions"),
        ("GET", "/health"),
    ] {
        let reply = call(server.address, method, path, preflight).await;
        assert!(
            !reply
                .headers
                .iter()
                .any(|(name, _)| name.starts_with("access-control")),
            "{method} {path}"
        );
    }

    let server = with(|config| {
        config.allowed_origins = vec!["https://a.example".to_owned()];
        config.api_keys = vec!["right".to_owned()];
    })
    .await;
    let reply = call(server.address, "OPTIONS", "/v1/completions", preflight).await;
    assert_eq!(reply.status, 204);
    assert_eq!(
        reply.header("access-control-allow-origin"),
        Some("https://a.example")
    );
    assert_eq!(reply.header("vary"), Some("Origin"));
    // The question needs no key, the call does; and its refusal can be read by the page.
    let reply = call(
        server.address,
        "GET",
        "/v1/models",
        "Origin: https://a.example\r\n",
    )
    .await;
    assert_eq!(reply.status, 401);
    assert_eq!(
        reply.header("access-control-allow-origin"),
        Some("https://a.example")
    );
    for other in [
        "https://b.example",
        "https://a.example.org",
        "null",
        "http://a.example",
    ] {
        let reply = call(
            server.address,
            "OPTIONS",
            "/v1/completions",
            &format!("Origin: {other}\r\nAccess-Control-Request-Method: POST\r\n"),
        )
        .await;
        assert_eq!(reply.status, 401, "{other}");
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
}
