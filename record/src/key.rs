//! Every attribute name of the schema, in one catalogue: OpenTelemetry semantic conventions where one exists, `picket.*` where none does.

/// Address of who dialled.
pub const SOURCE_ADDRESS: &str = "source.address";
/// Its port.
pub const SOURCE_PORT: &str = "source.port";
/// Where the client wanted to go.
pub const DESTINATION_ADDRESS: &str = "destination.address";
/// Its port.
pub const DESTINATION_PORT: &str = "destination.port";
/// Always `tcp`.
pub const NETWORK_TRANSPORT: &str = "network.transport";
/// `ipv4` or `ipv6`.
pub const NETWORK_TYPE: &str = "network.type";
/// `http`, `tls` (an application's own) or `tcp`.
pub const NETWORK_PROTOCOL_NAME: &str = "network.protocol.name";
/// `1.0`, `1.1` or `2`.
pub const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";
/// `tls`, where the hop between proxies used it.
pub const TLS_PROTOCOL_NAME: &str = "tls.protocol.name";
/// `1.3`.
pub const TLS_PROTOCOL_VERSION: &str = "tls.protocol.version";
/// Cipher suite, IANA name.
pub const TLS_CIPHER: &str = "tls.cipher";
/// Key exchange group, IANA name.
pub const TLS_CURVE: &str = "tls.curve";
/// Application protocol (ALPN).
pub const TLS_NEXT_PROTOCOL: &str = "tls.next_protocol";
/// Name that the client of an application's own TLS asked for.
pub const TLS_SERVER_NAME: &str = "tls.client.server_name";
/// Method.
pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
/// Status.
pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
/// Bytes of content from the client.
pub const HTTP_REQUEST_BODY_SIZE: &str = "http.request.body.size";
/// Bytes of content from the server.
pub const HTTP_RESPONSE_BODY_SIZE: &str = "http.response.body.size";
/// How often it was sent again.
pub const HTTP_REQUEST_RESEND_COUNT: &str = "http.request.resend_count";
/// Path, without the query.
pub const URL_PATH: &str = "url.path";
/// The query, where settings ask for it.
pub const URL_QUERY: &str = "url.query";
/// A request's header field; its name in lower case follows.
pub const HTTP_REQUEST_HEADER: &str = "http.request.header.";
/// An answer's header field; its name in lower case follows.
pub const HTTP_RESPONSE_HEADER: &str = "http.response.header.";
/// Host of Host or `:authority`.
pub const SERVER_ADDRESS: &str = "server.address";
/// Port of Host or `:authority`.
pub const SERVER_PORT: &str = "server.port";
/// `grpc`.
pub const RPC_SYSTEM: &str = "rpc.system.name";
/// Full method of a gRPC call.
pub const RPC_METHOD: &str = "rpc.method";
/// Status of a gRPC call.
pub const RPC_GRPC_STATUS_CODE: &str = "rpc.grpc.status_code";
/// The code, where it is not `ok`.
pub const ERROR_TYPE: &str = "error.type";
/// ULID of the record; the same in every copy.
pub const LOG_RECORD_UID: &str = "log.record.uid";
/// `inbound` or `outbound`, seen from the workload.
pub const DIRECTION: &str = "picket.direction";
/// The endpoint that was dialled.
pub const UPSTREAM_ADDRESS: &str = "picket.upstream.address";
/// Its port.
pub const UPSTREAM_PORT: &str = "picket.upstream.port";
/// `name.namespace` of the service.
pub const SERVICE: &str = "picket.service.name";
/// Workload that dialled.
pub const CLIENT_WORKLOAD: &str = "picket.client.workload";
/// Workload that was dialled.
pub const SERVER_WORKLOAD: &str = "picket.server.workload";
/// SPIFFE ID of the client.
pub const CLIENT_IDENTITY: &str = "picket.client.identity";
/// How we know: `mutual_tls`, `own_certificate`, `discovery`.
pub const CLIENT_IDENTITY_BY: &str = "picket.client.identity.established_by";
/// SPIFFE ID of the server.
pub const SERVER_IDENTITY: &str = "picket.server.identity";
/// How we know.
pub const SERVER_IDENTITY_BY: &str = "picket.server.identity.established_by";
/// `alpn`, `hint`, `first_bytes`, `port_list`, `timeout` or `unread`.
pub const DETECTED_BY: &str = "picket.protocol.detected_by";
/// `meshed`, `permitted`, `passthrough`, `local` or `refused`.
pub const DECISION: &str = "picket.decision";
/// The rule that decided.
pub const DECISION_REASON: &str = "picket.decision.reason";
/// How it ended (docs/reference/codes.md).
pub const CODE: &str = "picket.code";
/// The chain of errors.
pub const DETAIL: &str = "picket.detail";
/// `client`, `server` or `us`.
pub const CLOSED_BY: &str = "picket.closed_by";
/// `open` (a report of a long connection) or `closed`.
pub const CONNECTION_STATE: &str = "picket.connection.state";
/// `log.record.uid` of the connection's closing record.
pub const CONNECTION_UID: &str = "picket.connection.uid";
/// Bytes of content towards the server: bodies where requests are told apart, else all bytes.
pub const BYTES_FROM_CLIENT: &str = "picket.bytes.from_client";
/// Bytes of content towards the client: bodies where requests are told apart, else all bytes.
pub const BYTES_FROM_SERVER: &str = "picket.bytes.from_server";
/// Seconds until TCP to the endpoint stood.
pub const CONNECT_DURATION: &str = "picket.connect.duration";
/// Seconds of the TLS handshake.
pub const HANDSHAKE_DURATION: &str = "picket.tls.handshake.duration";
/// Seconds until the first byte from the server.
pub const FIRST_BYTE_DURATION: &str = "picket.first_byte.duration";
/// Seconds in all.
pub const DURATION: &str = "picket.duration";
/// Requests on the connection.
pub const REQUESTS: &str = "picket.connection.requests";
/// Protocol that the connection switched to.
pub const UPGRADED: &str = "picket.upgraded";
/// True where a text was cut at its limit.
pub const TRUNCATED: &str = "picket.truncated";
/// `issued` or `refused`.
pub const ISSUANCE_RESULT: &str = "picket.issuance.result";
/// SPIFFE ID in the certificate.
pub const CERTIFICATE_IDENTITY: &str = "picket.certificate.identity";
/// Serial number, hexadecimal.
pub const CERTIFICATE_SERIAL: &str = "picket.certificate.serial";
/// Last second of validity, RFC 3339.
pub const CERTIFICATE_NOT_AFTER: &str = "picket.certificate.not_after";
/// SHA-256 of the issuer's certificate.
pub const CERTIFICATE_ISSUER: &str = "picket.certificate.issuer.sha256";
/// SHA-256 of the public key (SubjectPublicKeyInfo).
pub const CERTIFICATE_KEY: &str = "picket.certificate.key.sha256";
/// Service account of the caller's token.
pub const SERVICE_ACCOUNT: &str = "picket.service_account.name";
/// Namespace of the caller's token.
pub const K8S_NAMESPACE: &str = "k8s.namespace.name";
/// Pod that the caller's token is bound to.
pub const K8S_POD_NAME: &str = "k8s.pod.name";
/// Its uid.
pub const K8S_POD_UID: &str = "k8s.pod.uid";
/// False where the caller's token is bound to no pod.
pub const POD_BOUND: &str = "picket.pod.bound";
/// What the alert is about, from a closed list.
pub const ALERT_NAME: &str = "picket.alert.name";
/// `firing` or `resolved`.
pub const ALERT_STATE: &str = "picket.alert.state";
/// Which one it is about, where there are several.
pub const ALERT_SUBJECT: &str = "picket.alert.subject";
/// The authority's clock, RFC 3339.
pub const CLOCK_AUTHORITY: &str = "picket.clock.authority";
/// The proxy's clock, RFC 3339.
pub const CLOCK_PROXY: &str = "picket.clock.proxy";
/// Number of the record in its stream, from 1; a missing number is a missing record.
pub const SEQUENCE: &str = "picket.sequence";
/// Attribute of the resource: whose numbers these are.
pub const STREAM: &str = "picket.stream.id";
/// Number of the first record that was lost.
pub const GAP_FIRST: &str = "picket.gap.first";
/// Number of the last one.
pub const GAP_LAST: &str = "picket.gap.last";
/// How many were lost.
pub const GAP_RECORDS: &str = "picket.gap.records";
/// They were written after this, in nanoseconds since 1970 UTC.
pub const GAP_SINCE: &str = "picket.gap.since";
/// And not after this.
pub const GAP_UNTIL: &str = "picket.gap.until";
/// `spool_full`, `age`, `disk_low`, `queue_full`, `write_failed`, `sync_failed`, `damaged`, `vanished`, `malformed`,
/// `set_aside`, `refused` or `partly_refused`.
pub const GAP_REASON: &str = "picket.gap.reason";
/// Which sink alone lacks them, `otlp` or `syslog`; absent when none has them.
pub const GAP_SINK: &str = "picket.gap.sink";
/// Where the records stood in the chain: the digest before the first of them, hexadecimal, if it is known.
pub const GAP_DIGEST_BEFORE: &str = "picket.gap.digest.before";
/// And the digest after the last one.
pub const GAP_DIGEST_AFTER: &str = "picket.gap.digest.after";
/// Number of the first record that is sealed.
pub const CHECKPOINT_FIRST: &str = "picket.checkpoint.first";
/// Number of the last one.
pub const CHECKPOINT_LAST: &str = "picket.checkpoint.last";
/// Chain digest after the last one, hexadecimal (docs/formats/segment.md).
pub const CHECKPOINT_DIGEST: &str = "picket.checkpoint.digest";
/// Signature by the workload's own key, base64.
pub const CHECKPOINT_SIGNATURE: &str = "picket.checkpoint.signature";
/// The leaf whose key signed, base64 of its DER.
pub const CHECKPOINT_CERTIFICATE: &str = "picket.checkpoint.certificate";
/// The certificates between the leaf and a root, base64 of their DER, with commas between them.
pub const CHECKPOINT_ISSUERS: &str = "picket.checkpoint.issuers";
/// The stream, as it was signed.
pub const CHECKPOINT_STREAM: &str = "picket.checkpoint.stream";
/// Chain digest before the first one, hexadecimal.
pub const CHECKPOINT_BEFORE: &str = "picket.checkpoint.digest.before";

/// The deviation's number; its opening and its end carry the same.
pub const DEVIATION_ID: &str = "picket.deviation.id";
/// `opened` or `closed`.
pub const DEVIATION_STATE: &str = "picket.deviation.state";
/// What is not as it was.
pub const DEVIATION_KIND: &str = "picket.deviation.kind";
/// SPIFFE ID of the peer, or the class of its address.
pub const DEVIATION_PEER: &str = "picket.deviation.peer";
/// Lower end of what was expected.
pub const DEVIATION_EXPECTED_MIN: &str = "picket.deviation.expected.min";
/// Upper end of it.
pub const DEVIATION_EXPECTED_MAX: &str = "picket.deviation.expected.max";
/// What was observed.
pub const DEVIATION_OBSERVED: &str = "picket.deviation.observed";
/// The unit of both, as UCUM has it.
pub const DEVIATION_UNIT: &str = "picket.deviation.unit";
/// When it began, as far as can be told, RFC 3339.
pub const DEVIATION_SINCE: &str = "picket.deviation.since";
/// How many records say so.
pub const DEVIATION_RECORDS: &str = "picket.deviation.records";
/// How many edges it is about.
pub const DEVIATION_PEERS: &str = "picket.deviation.peers";
/// The other edges it is about.
pub const DEVIATION_OTHERS: &str = "picket.deviation.others";
/// The test statistic over its limit.
pub const DEVIATION_SCORE: &str = "picket.deviation.score";
/// Why it is over.
pub const DEVIATION_ENDING: &str = "picket.deviation.ending";
/// Template of the pods that are compared, such as its pod-template-hash.
pub const ROLLOUT_TEMPLATE: &str = "picket.rollout.template";
/// The template before it.
pub const ROLLOUT_PREVIOUS: &str = "picket.rollout.previous_template";
/// How many differences there are.
pub const ROLLOUT_DIFFERENCES: &str = "picket.rollout.differences";
/// Names and meanings, in the order of the documented table.
pub const ALL: &[(&str, &str)] = &[
    (SOURCE_ADDRESS, "address of who dialled"),
    (SOURCE_PORT, "its port"),
    (DESTINATION_ADDRESS, "where the client wanted to go"),
    (DESTINATION_PORT, "its port"),
    (NETWORK_TRANSPORT, "always `tcp`; not in requests"),
    (NETWORK_TYPE, "`ipv4` or `ipv6`"),
    (NETWORK_PROTOCOL_NAME, "`http`, `tls` (an application's own) or `tcp`"),
    (NETWORK_PROTOCOL_VERSION, "`1.0`, `1.1` or `2`"),
    (TLS_PROTOCOL_NAME, "`tls`, where the hop between proxies used it; not in requests"),
    (TLS_PROTOCOL_VERSION, "`1.3`"),
    (TLS_CIPHER, "cipher suite, IANA name; not in requests"),
    (TLS_CURVE, "key exchange group, IANA name"),
    (TLS_NEXT_PROTOCOL, "application protocol (ALPN)"),
    (TLS_SERVER_NAME, "name that the client of an application's own TLS asked for"),
    (HTTP_REQUEST_METHOD, "method"),
    (HTTP_RESPONSE_STATUS_CODE, "status"),
    (HTTP_REQUEST_BODY_SIZE, "bytes of content from the client"),
    (HTTP_RESPONSE_BODY_SIZE, "bytes of content from the server"),
    (HTTP_REQUEST_RESEND_COUNT, "how often it was sent again"),
    (URL_PATH, "path, without the query"),
    (URL_QUERY, "query, where `records` asks for it; what was not asked for is `REDACTED`"),
    (
        "http.request.header.NAME",
        "a header field of the request, where `records` names it; several of one name are one text",
    ),
    ("http.response.header.NAME", "a header field of the answer, where `records` names it"),
    (SERVER_ADDRESS, "host of Host or `:authority`"),
    (SERVER_PORT, "port of Host or `:authority`"),
    (RPC_SYSTEM, "`grpc`"),
    (RPC_METHOD, "full method of a gRPC call"),
    (RPC_GRPC_STATUS_CODE, "status of a gRPC call"),
    (ERROR_TYPE, "the code, where it is not `ok`"),
    (LOG_RECORD_UID, "ULID of the record; the same in every copy"),
    (DIRECTION, "`inbound` or `outbound`, seen from the workload"),
    (UPSTREAM_ADDRESS, "the endpoint that was dialled"),
    (UPSTREAM_PORT, "its port"),
    (SERVICE, "`name.namespace` of the service"),
    (CLIENT_WORKLOAD, "workload that dialled"),
    (SERVER_WORKLOAD, "workload that was dialled"),
    (CLIENT_IDENTITY, "SPIFFE ID of the client"),
    (CLIENT_IDENTITY_BY, "how we know: `mutual_tls`, `own_certificate`, `discovery`"),
    (SERVER_IDENTITY, "SPIFFE ID of the server"),
    (SERVER_IDENTITY_BY, "how we know"),
    (DETECTED_BY, "`alpn`, `hint`, `first_bytes`, `port_list`, `timeout` or `unread`; not in requests"),
    (DECISION, "`meshed`, `permitted`, `passthrough`, `local` or `refused`"),
    (DECISION_REASON, "the rule that decided"),
    (CODE, "how it ended (docs/reference/codes.md)"),
    (DETAIL, "the chain of errors"),
    (CLOSED_BY, "`client`, `server` or `us`"),
    (CONNECTION_STATE, "`open` (a report of a long connection) or `closed`"),
    (CONNECTION_UID, "`log.record.uid` of the connection's closing record; in each record of the connection"),
    (BYTES_FROM_CLIENT, "bytes of content towards the server: bodies where requests are told apart, else all bytes"),
    (BYTES_FROM_SERVER, "bytes of content towards the client: bodies where requests are told apart, else all bytes"),
    (CONNECT_DURATION, "seconds until TCP to the endpoint stood"),
    (HANDSHAKE_DURATION, "seconds of the TLS handshake"),
    (FIRST_BYTE_DURATION, "seconds until the first byte from the server"),
    (DURATION, "seconds in all"),
    (REQUESTS, "requests on the connection"),
    (UPGRADED, "protocol that the connection switched to"),
    (SEQUENCE, "number of the record in its stream, from 1; a missing number is a missing record"),
    (STREAM, "attribute of the resource: whose numbers these are"),
    (TRUNCATED, "true where a text was cut at its limit"),
];

/// Names and meanings in `picket.issuance`, `picket.alert`, `picket.gap`, `picket.checkpoint`, `picket.deviation` and `picket.rollout`, in the order of the documented table.
pub const EVENTS: &[(&str, &str)] = &[
    (ISSUANCE_RESULT, "`issued`, `refused`, or `root_dropped` when an operator took a root out"),
    (ERROR_TYPE, "why it was refused, from a closed list (the `reason` of the counter)"),
    (DETAIL, "the chain of errors; of an alert, what there is to know"),
    (CERTIFICATE_IDENTITY, "SPIFFE ID in the certificate"),
    (CERTIFICATE_SERIAL, "serial number, hexadecimal"),
    (CERTIFICATE_NOT_AFTER, "last second of validity, RFC 3339"),
    (CERTIFICATE_ISSUER, "SHA-256 of the issuer's certificate"),
    (CERTIFICATE_KEY, "SHA-256 of the public key (SubjectPublicKeyInfo)"),
    (SERVICE_ACCOUNT, "service account of the caller's token"),
    (K8S_NAMESPACE, "namespace of the caller's token"),
    (K8S_POD_NAME, "pod that the caller's token is bound to"),
    (K8S_POD_UID, "its uid"),
    (POD_BOUND, "false where the caller's token is bound to no pod"),
    (SOURCE_ADDRESS, "address of the caller"),
    (SOURCE_PORT, "its port"),
    (ALERT_NAME, "what the alert is about, from a closed list"),
    (ALERT_STATE, "`firing` or `resolved`"),
    (ALERT_SUBJECT, "which one it is about, where there are several"),
    (CLOCK_AUTHORITY, "the authority's clock, RFC 3339"),
    (CLOCK_PROXY, "the proxy's clock, RFC 3339"),
    (GAP_FIRST, "number of the first record that was lost"),
    (GAP_LAST, "number of the last one"),
    (GAP_RECORDS, "how many were lost"),
    (GAP_SINCE, "they were written after this, in nanoseconds since 1970 UTC"),
    (GAP_UNTIL, "and not after this"),
    (
        GAP_REASON,
        "`spool_full`, `age`, `disk_low`, `queue_full`, `write_failed`, `sync_failed`, `damaged`, `vanished`, `malformed`, `set_aside`, `refused` or `partly_refused`",
    ),
    (GAP_SINK, "which sink alone lacks them, `otlp` or `syslog`; absent when none has them"),
    (
        GAP_DIGEST_BEFORE,
        "where the records stood in the chain: the digest before the first of them, hexadecimal, if it is known",
    ),
    (GAP_DIGEST_AFTER, "and the digest after the last one"),
    (CHECKPOINT_STREAM, "the stream, as it was signed; as in the resource"),
    (CHECKPOINT_FIRST, "number of the first record that is sealed"),
    (CHECKPOINT_LAST, "number of the last one"),
    (CHECKPOINT_BEFORE, "chain digest before the first one, hexadecimal"),
    (CHECKPOINT_DIGEST, "chain digest after the last one, hexadecimal (docs/formats/segment.md)"),
    (CHECKPOINT_SIGNATURE, "signature by the workload's own key, base64 (docs/formats/evidence.md)"),
    (CHECKPOINT_CERTIFICATE, "the leaf whose key signed, base64 of its DER"),
    (CHECKPOINT_ISSUERS, "the certificates between the leaf and a root, base64 of their DER, with commas between them"),
    (DEVIATION_ID, "number of the deviation; all its records carry the same"),
    (DEVIATION_STATE, "`opened`, `updated` (it is about more edges than were named) or `closed`"),
    (
        DEVIATION_KIND,
        "what is not as it was: `latency`, `latency_tail`, `first_byte`, `errors`, `rate_up`, `rate_down`, `silence`, `bytes_in`, `bytes_out`, `new_peer`, `vanished_peer`, `plaintext`, `cpu` or `memory`",
    ),
    (DIRECTION, "edge: `inbound` or `outbound`; an event without it is about the pod"),
    (DEVIATION_PEER, "edge: SPIFFE ID of the peer, or the class of its address"),
    (SERVICE, "edge: `name.namespace` of the service"),
    (DESTINATION_PORT, "edge: port of the service"),
    (NETWORK_PROTOCOL_NAME, "edge: `http`, `grpc` or `tcp`"),
    (DEVIATION_EXPECTED_MIN, "lower end of what was expected"),
    (DEVIATION_EXPECTED_MAX, "upper end of it"),
    (DEVIATION_OBSERVED, "what was observed"),
    (DEVIATION_UNIT, "unit of these three, as UCUM has it"),
    (DEVIATION_SINCE, "when it began, as far as can be told, RFC 3339"),
    (DEVIATION_RECORDS, "how many records say so"),
    (DEVIATION_PEERS, "how many edges it is about"),
    (
        DEVIATION_OTHERS,
        "the other edges it is about, at most seven: the other new peers of `new_peer`, or those that left their normal with it, with `; ` between them; with service, port and protocol where these differ",
    ),
    (DEVIATION_SCORE, "test statistic over its limit: 1 when it opened, more the surer"),
    (DEVIATION_ENDING, "`recovered`, `accepted`, `adopted` or `forgotten`"),
    (ROLLOUT_TEMPLATE, "template of the pods that are compared, such as its pod-template-hash"),
    (ROLLOUT_PREVIOUS, "the template before it"),
    (ROLLOUT_DIFFERENCES, "how many differences there are; the detail names the first of them"),
    (LOG_RECORD_UID, "ULID of the record; the same in every copy"),
    (SEQUENCE, "number of the record in its stream, from 1; a missing number is a missing record"),
    (STREAM, "attribute of the resource: whose numbers these are"),
    (TRUNCATED, "true where a text was cut at its limit"),
];

/// The documented table of events (docs/reference/events.md).
pub fn events_table() -> String {
    rows(EVENTS)
}

/// The documented table (docs/reference/records.md).
pub fn table() -> String {
    rows(ALL)
}

fn rows(keys: &[(&str, &str)]) -> String {
    let rows = keys.iter().map(|(name, meaning)| format!("| `{name}` | {meaning} |\n"));
    std::iter::once("| attribute | meaning |\n|---|---|\n".to_owned()).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_documented_table_is_fresh() {
        let page = include_str!("../../docs/reference/records.md");
        assert!(page.contains(&super::table()), "run: cargo run -p record --example reference");
        let page = include_str!("../../docs/reference/events.md");
        assert!(page.contains(&super::events_table()), "run: cargo run -p record --example reference");
    }
}
