//! A gRPC service with a unary and a bidirectional streaming call, and its client, on tonic.
//!
//! Two methods and two messages: written out here, in the form that tonic's code generator gives them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::{Pin, Service};
use tonic::server::{NamedService, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

const RESERVE: &str = "/demo.Inventory/Reserve";
const WATCH: &str = "/demo.Inventory/Watch";
/// Messages each way in one streaming call.
const MESSAGES: usize = 5;

/// What is asked for.
#[derive(Clone, PartialEq, prost::Message)]
struct Item {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    count: u32,
}

/// What is in stock.
#[derive(Clone, PartialEq, prost::Message)]
struct Stock {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    left: u32,
}

fn stock(item: Item) -> Stock {
    Stock { left: 1000_u32.saturating_sub(item.count), name: item.name }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;
type Stocks = Pin<Box<dyn Stream<Item = Result<Stock, Status>> + Send>>;

#[derive(Clone)]
struct Reserve;

impl UnaryService<Item> for Reserve {
    type Response = Stock;
    type Future = Answer<Response<Stock>>;

    fn call(&mut self, request: Request<Item>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(stock(request.into_inner()))) })
    }
}

#[derive(Clone)]
struct Watch;

impl StreamingService<Item> for Watch {
    type Response = Stock;
    type ResponseStream = Stocks;
    type Future = Answer<Response<Stocks>>;

    fn call(&mut self, request: Request<Streaming<Item>>) -> Self::Future {
        let stocks = request.into_inner().map(|item| item.map(stock));
        Box::pin(async move { Ok(Response::new(Box::pin(stocks) as Stocks)) })
    }
}

/// The service as tonic's router takes it.
#[derive(Clone)]
struct Inventory;

impl NamedService for Inventory {
    const NAME: &'static str = "demo.Inventory";
}

impl Service<http::Request<Body>> for Inventory {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
            Ok(match request.uri().path() {
                RESERVE => grpc.unary(Reserve, request).await,
                WATCH => grpc.streaming(Watch, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// Serves both methods.
pub(crate) fn serve(listen: SocketAddr) -> Result<()> {
    let server = Server::builder().add_service(Inventory).serve(listen);
    runtime()?.block_on(server).with_context(|| format!("cannot serve on {listen}"))
}

/// Calls both methods over one connection; every fifth call is a stream.
pub(crate) fn load(to: SocketAddr, time: Duration, marker: &str) -> Result<super::Sent> {
    runtime()?.block_on(calls(to, time, marker))
}

async fn calls(to: SocketAddr, time: Duration, marker: &str) -> Result<super::Sent> {
    let channel = Endpoint::from_shared(format!("http://{to}"))?.connect().await.context("cannot connect")?;
    let mut client = tonic::client::Grpc::new(channel);
    let mut sent = super::Sent { connections: 1, ..super::Sent::default() };
    let end = Instant::now() + time;
    while Instant::now() < end {
        if sent.requests % 5 == 4 {
            watch(&mut client, marker).await?;
        } else {
            reserve(&mut client, marker).await?;
        }
        sent.requests += 1;
        tokio::time::sleep(super::PAUSE).await;
    }
    Ok(sent)
}

async fn reserve(client: &mut tonic::client::Grpc<Channel>, marker: &str) -> Result<()> {
    client.ready().await?;
    let item = Request::new(Item { name: marker.to_owned(), count: 7 });
    let path = http::uri::PathAndQuery::from_static(RESERVE);
    let answer: Response<Stock> = client.unary(item, path, ProstCodec::default()).await?;
    ensure!(answer.get_ref().left == 993, "the answer is {answer:?}");
    Ok(())
}

async fn watch(client: &mut tonic::client::Grpc<Channel>, marker: &str) -> Result<()> {
    client.ready().await?;
    let items: Vec<Item> = (0..MESSAGES).map(|_| Item { name: marker.to_owned(), count: 1 }).collect();
    let path = http::uri::PathAndQuery::from_static(WATCH);
    let request = Request::new(tokio_stream::iter(items));
    let answer: Response<Streaming<Stock>> = client.streaming(request, path, ProstCodec::default()).await?;
    let stocks: Vec<Stock> = answer.into_inner().collect::<Result<_, Status>>().await?;
    ensure!(stocks.len() == MESSAGES, "{} messages came back", stocks.len());
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
