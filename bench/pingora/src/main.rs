//! Removes /hr and adds a constant token, as nginx and HAProxy do in this benchmark: `pingora-inject PORT WECOM_PORT TOKEN`.
//! Serves HTTP/1 and HTTP/2 in clear text.

use async_trait::async_trait;
use pingora_core::{
    Result,
    apps::HttpServerOptions,
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};
use pingora_http::RequestHeader;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Inject {
    wecom_port: u16,
    token: String,
}

#[async_trait]
impl ProxyHttp for Inject {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(("127.0.0.1", self.wecom_port), false, String::new())))
    }

    async fn upstream_request_filter(&self, _: &mut Session, request: &mut RequestHeader, _: &mut ()) -> Result<()> {
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        let uri = format!("{}&access_token={}", target.strip_prefix("/hr").unwrap_or(target), self.token);
        request.set_uri(uri.parse().expect("a target and a token"));
        request.insert_header("Host", "127.0.0.1")?;
        request.remove_header("X-Api-Key");
        Ok(())
    }
}

fn main() {
    let [port, wecom_port, token] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("PORT WECOM_PORT TOKEN");
    let wecom_port = wecom_port.parse().expect("a port");
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 1024, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Inject { wecom_port, token });
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    service.app_logic_mut().expect("the proxy").server_options = Some(options);
    service.add_tcp(&format!("127.0.0.1:{port}"));
    server.add_service(service);
    server.run_forever();
}
