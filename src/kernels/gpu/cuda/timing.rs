//! Points of time in the stream, and recorded work.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, CudaGraph, CudaStream};

use super::super::driver::{Mark, Recording};
use super::fault;
use crate::error::{Error, Result};
use crate::units::Seconds;

struct CudaMark {
    event: CudaEvent,
    stream: Arc<CudaStream>,
}

pub(super) fn mark(stream: &Arc<CudaStream>) -> Result<Box<dyn Mark>> {
    let event = stream
        .context()
        .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
        .map_err(|e| fault("a new event", e))?;
    Ok(Box::new(CudaMark {
        event,
        stream: Arc::clone(stream),
    }))
}

impl Mark for CudaMark {
    fn record(&self) -> Result<()> {
        self.event
            .record(&self.stream)
            .map_err(|e| fault("recording an event", e))
    }

    fn wait(&self) -> Result<()> {
        self.event
            .synchronize()
            .map_err(|e| fault("waiting for an event", e))
    }

    fn since(&self, start: &dyn Mark) -> Result<Seconds> {
        let start: &Self = start
            .any()
            .downcast_ref()
            .ok_or_else(|| Error::Internal("an event of another device".into()))?;
        let milliseconds = start
            .event
            .elapsed_ms(&self.event)
            .map_err(|e| fault("time between events", e))?;
        Ok(Seconds(f64::from(milliseconds) / 1e3))
    }

    fn any(&self) -> &dyn Any {
        self
    }
}

/// A graph that threads may hand on.
struct CudaRecording(Mutex<Handed>);

struct Handed(CudaGraph);

// SAFETY: the driver asks for no more than that calls with a graph come one after another, which the mutex around it sees
// to; every call binds its thread to the context first.
unsafe impl Send for Handed {}

impl Recording for CudaRecording {
    unsafe fn launch(&self) -> Result<()> {
        let graph = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        graph.0.launch().map_err(|e| fault("a graph", e))
    }
}

pub(super) fn begin(stream: &CudaStream) -> Result<()> {
    // Only this thread's calls are checked: a sampler may ask the driver meanwhile.
    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .map_err(|e| fault("recording a graph", e))
}

pub(super) fn end(stream: &Arc<CudaStream>) -> Result<Box<dyn Recording>> {
    let graph = stream
        .end_capture(CUgraphInstantiate_flags(0))
        .map_err(|e| fault("recording a graph", e))?
        .ok_or_else(|| Error::Device("recording a graph: the driver gave none".into()))?;
    // So that the first launch costs what the others do.
    graph.upload().map_err(|e| fault("uploading a graph", e))?;
    Ok(Box::new(CudaRecording(Mutex::new(Handed(graph)))))
}
