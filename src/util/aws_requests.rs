//! Observes the requests that the AWS SDKs send, of which each is billed.

use std::fmt;
use std::sync::Arc;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

/// The service that a request is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Sqs,
    S3,
}

/// Observes every request, and must not block.
pub trait RequestObserver: fmt::Debug + Send + Sync {
    /// Observes a request, such as `GetObject`. The SDK repeats a failed one, which is another.
    fn sent(&self, service: Service, operation: &str);

    /// Observes the size of an object's content, or of a range of it, that a response announces.
    fn content(&self, bytes: u64);
}

/// An interceptor for the clients of a service.
#[derive(Clone, Debug)]
pub(crate) struct ObserveRequests {
    pub(crate) service: Service,
    pub(crate) observer: Arc<dyn RequestObserver>,
}

fn operation(configuration: &ConfigBag) -> &str {
    configuration.load::<Metadata>().map_or("", Metadata::name)
}

impl Intercept for ObserveRequests {
    fn name(&self) -> &'static str {
        "ObserveRequests"
    }

    /// Is called for each attempt.
    fn read_before_transmit(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        configuration: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.observer.sent(self.service, operation(configuration));
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        configuration: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // The response to HEAD has the same header without the content.
        if operation(configuration) == "GetObject" && context.response().status().is_success() {
            let length = context.response().headers().get("content-length");
            let length = length.and_then(|length| length.parse().ok());
            self.observer.content(length.unwrap_or_default());
        }
        Ok(())
    }
}
