//! What is in force, in the form of the configuration file: it can be kept and given to `run` again.
//!
//! Promises that no header's value is shown: these are often credentials.

use std::time::Duration;

use serde_json::{Value, json};

use super::{ACCESS_LOG_FORMATS, Config, LOG_FORMATS, Limits, PLAINTEXT};

impl Config {
    /// The whole configuration as YAML, defaults included.
    pub fn to_yaml(&self) -> String {
        let mut root = json!({
            "trustDomain": self.trust_domain.as_str(),
            "outbound": { "port": self.outbound.port },
            "inbound": { "port": self.inbound.port, "plaintext": word(&PLAINTEXT, self.inbound.plaintext) },
            "identity": {
                "caAddress": self.identity.ca_address,
                "caRoots": self.identity.ca_roots,
                "caIdentity": self.identity.ca_identity.as_str(),
                "tokenFile": self.identity.token_file,
            },
            "discovery": { "file": self.discovery },
            "admin": { "address": self.admin.address },
            "baseline": self.baseline.to_json(),
            "records": self.records.to_json(),
            "accessLog": {
                "mode": self.access_log.mode.to_string(),
                "format": word(&ACCESS_LOG_FORMATS, self.access_log.format),
            },
            "log": { "level": self.log.level, "format": word(&LOG_FORMATS, self.log.format) },
            "workers": self.workers,
            "drainTimeout": duration(self.drain_timeout),
            "limits": self.limits.to_json(),
            "detect": {
                "timeout": duration(self.detect.timeout),
                "serverFirstPorts": self.detect.server_first_ports,
            },
        });
        if let Some(directory) = &self.identity.state_dir {
            root["identity"]["stateDir"] = json!(directory);
        }
        if let Some(file) = &self.access_log.annotations {
            root["accessLog"]["annotations"] = json!(file);
        }
        if let Some(socket) = &self.admin.socket {
            root["admin"]["socket"] = json!(socket);
        }
        if let Some(export) = &self.export {
            root["export"] = export.to_json();
        }
        if let Some(metrics) = &self.metrics {
            root["metrics"] = metrics.to_json();
        }
        if let Some(syslog) = &self.syslog {
            root["syslog"] = syslog.to_json();
        }
        if let Some(spool) = &self.spool {
            root["spool"] = spool.to_json();
        }
        settings::to_yaml(&root)
    }
}

impl Limits {
    fn to_json(&self) -> Value {
        json!({
            "connections": self.connections,
            "keepAliveTimeout": duration(self.keep_alive_timeout),
            "tlsHandshakeTimeout": duration(self.tls_handshake_timeout),
            "requestHeadTimeout": duration(self.request_head_timeout),
            "connectTimeout": duration(self.connect_timeout),
            "requestHeadBytes": self.request_head_bytes,
            "recordQueueBytes": self.record_queue_bytes,
        })
    }
}

/// The word that means `value`.
pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, meaning)| *meaning == value).map_or("", |(word, _)| word)
}

/// As the file has it: whole seconds where they are.
pub(super) fn duration(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) => format!("{seconds}s"),
        (_, _) => format!("{}ms", duration.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use settings::Document;

    use super::*;

    const EXAMPLE: &str = include_str!("../../../deploy/proxy.example.yaml");

    fn load(text: &str, environment: &[(&str, &str)]) -> Config {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let document = Document::parse("proxy.yaml", text, "PICKET_", environment).unwrap();
        document.read(|root| Config::read(root, &crate::config::Variables::new(&[]))).unwrap()
    }

    #[test]
    fn what_is_printed_reads_as_the_same_configuration() {
        let export = "export: {endpoint: 'https://c:1', fallbackEndpoints: ['https://d:1'], protocol: http/protobuf, \
                      compression: zstd, roots: /r.pem, clientCertificate: /c.pem, clientKey: /k.pem, awayAfter: 1m, \
                      timeout: 250ms, resource: {a.b: '0755'}}\n\
                      spool: {dir: /s, maxBytes: 1MiB, sync: always, onFull: refuse}\n\
                      syslog: {endpoint: 'tls://s:6514', roots: /r.pem, facility: audit, hostName: a}\n\
                      metrics: {interval: 10s, attributes: [picket.code]}\n\
                      records: {requestHeaders: [x-id], query: true, queryParameters: [page]}\n";
        let strict = [
            ("PICKET_INBOUND_PLAINTEXT", "strict"),
            ("PICKET_LOG_LEVEL", "info,h2=debug"),
            ("PICKET_ACCESS_LOG_MODE", "sampled:0.25"),
        ];
        for (text, environment) in [(EXAMPLE.to_owned(), &[][..]), (format!("{EXAMPLE}{export}"), &strict[..])] {
            let config = load(&text, environment);
            let again = load(&config.to_yaml(), &[]);
            assert_eq!(format!("{config:?}"), format!("{again:?}"), "{}", config.to_yaml());
        }
    }

    #[test]
    fn the_value_of_a_header_is_not_shown() {
        let export = "export: {endpoint: 'http://c:1', headers: {x-api-key: sesame}}\n";
        let printed = load(&format!("{EXAMPLE}{export}"), &[]).to_yaml();
        assert!(printed.contains("x-api-key") && !printed.contains("sesame"), "{printed}");
    }
}
