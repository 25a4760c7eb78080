//! The few calls of the CUDA driver that the backend makes, owned and checked.
//!
//! Every handle frees itself. Nothing here is global: a [`Device`] holds its context, and what is
//! made on it keeps it alive. A process without a driver never gets past [`Device::open`].

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys;

mod generation;
mod memory;
mod module;
mod tensor_map;

pub(crate) use memory::{DeviceMemory, HostMemory};
pub(crate) use module::{Kernel, Module};
pub(crate) use tensor_map::TensorMap;

/// A call of the driver failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{call}: {reason}")]
pub struct DriverError {
    /// Which.
    pub call: &'static str,
    /// Why, in the driver's words.
    pub reason: String,
    /// It was about memory.
    pub out_of_memory: bool,
}

type Result<T> = std::result::Result<T, DriverError>;

pub(crate) fn check(call: &'static str, code: sys::CUresult) -> Result<()> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver gives a static string, or leaves the null pointer.
    let reason = unsafe {
        sys::cuGetErrorString(code, &mut text);
        match text.is_null() {
            true => format!("{code:?}"),
            false => CStr::from_ptr(text).to_string_lossy().into_owned(),
        }
    };
    Err(DriverError {
        call,
        reason,
        out_of_memory: code == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
    })
}

/// A GPU and its primary context.
#[derive(Debug)]
pub(crate) struct Device {
    handle: sys::CUdevice,
    context: sys::CUcontext,
    pub name: String,
    /// As CUDA writes it: 13000 is 13.0.
    pub driver_version: i32,
    pub major: i32,
    pub minor: i32,
    pub multiprocessors: usize,
    /// Shared memory that a block may have.
    pub shared_per_block: usize,
}

// SAFETY: the driver's handles may be used from any thread; the context is made current before use.
unsafe impl Send for Device {}
// SAFETY: as above; nothing is changed behind a shared reference.
unsafe impl Sync for Device {}

impl Device {
    /// The `ordinal`-th GPU.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let absent = |reason: &str| DriverError {
            call: "opening the GPU",
            reason: reason.to_owned(),
            out_of_memory: false,
        };
        // SAFETY: only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(absent("there is no NVIDIA driver on this machine"));
        }
        let ordinal = i32::try_from(ordinal).map_err(|_| absent("there is no such GPU"))?;
        let (mut handle, mut context, mut version) = (0, null_mut(), 0);
        let mut name = [0; 256];
        // SAFETY: pointers to locals of the right types; `name` has the length that is given.
        unsafe {
            check("cuInit", sys::cuInit(0))?;
            check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
            check("cuDeviceGet", sys::cuDeviceGet(&mut handle, ordinal))?;
            check(
                "cuDeviceGetName",
                sys::cuDeviceGetName(name.as_mut_ptr(), 255, handle),
            )?;
            check(
                "cuDevicePrimaryCtxRetain",
                sys::cuDevicePrimaryCtxRetain(&mut context, handle),
            )?;
        }
        let attribute = |which| -> Result<i32> {
            let mut value = 0;
            // SAFETY: a pointer to a local.
            check("cuDeviceGetAttribute", unsafe {
                sys::cuDeviceGetAttribute(&mut value, which, handle)
            })?;
            Ok(value)
        };
        use sys::CUdevice_attribute as A;
        // SAFETY: the driver ended the name with a zero, and the array was all zeros.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        let device = Self {
            handle,
            context,
            name: name.to_string_lossy().into_owned(),
            driver_version: version,
            major: attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            shared_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
        };
        device.make_current()?;
        Ok(Arc::new(device))
    }

    /// What this thread calls from now on is about this GPU.
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check("cuCtxSetCurrent", unsafe {
            sys::cuCtxSetCurrent(self.context)
        })
    }

    /// Free and total bytes of memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        self.make_current()?;
        // SAFETY: pointers to locals.
        check("cuMemGetInfo", unsafe {
            sys::cuMemGetInfo_v2(&mut free, &mut total)
        })?;
        Ok((free, total))
    }

    /// Kernels may start before the ones ahead have ended, and blocks form clusters.
    pub fn has_clusters(&self) -> bool {
        self.major >= 9
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`; everything made in the context holds an `Arc` of it.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

/// Work of the GPU, one after the other.
#[derive(Debug)]
pub(crate) struct Stream {
    handle: sys::CUstream,
    pub device: Arc<Device>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let mut handle = null_mut();
        device.make_current()?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a pointer to a local.
        check("cuStreamCreate", unsafe {
            sys::cuStreamCreate(&mut handle, flags)
        })?;
        Ok(Self {
            handle,
            device: device.clone(),
        })
    }

    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: a live handle.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.handle)
        })
    }

    pub fn set_bytes(&self, at: u64, value: u8, bytes: usize) -> Result<()> {
        // SAFETY: callers give ranges of their own memory.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(at, value, bytes, self.handle)
        })
    }

    /// Copies to the GPU. `from` may be changed once the stream has come past this.
    pub fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: callers give ranges of their own memory, at least as long as `from`.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.handle)
        })
    }

    /// Copies from the GPU and waits.
    pub fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: callers give ranges of their own memory; the copy ends before `to` is let go.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.handle)
        })?;
        self.synchronize()
    }

    /// Starts `kernel` with one structure of parameters.
    ///
    /// `P` must be the structure that the kernel declares; that is what the tests in `params` and
    /// the checks on a GPU are for.
    pub fn launch<P: Copy>(&self, kernel: &Kernel, shape: Shape, params: &P) -> Result<()> {
        let mut attributes: [sys::CUlaunchAttribute; 2] = [
            attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            ),
            in_clusters(shape),
        ];
        attributes[0].value.programmaticStreamSerializationAllowed = 1;
        let attributes_used = match (self.device.has_clusters(), shape.cluster > 1) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        let config = config(shape, self.handle, &mut attributes[..attributes_used]);
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one structure by value, of which the driver makes a copy now.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(&config, kernel.handle, arguments.as_mut_ptr(), null_mut())
        })
    }

    /// Records what `work` launches, as a graph.
    pub fn capture<E: From<DriverError>>(
        &self,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Graph, E> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a live handle.
        check("cuStreamBeginCapture", unsafe {
            sys::cuStreamBeginCapture_v2(self.handle, mode)
        })?;
        let worked = work();
        let (mut graph, mut ready) = (null_mut(), null_mut());
        // SAFETY: pointers to locals; the capture that began above ends here, whatever `work` said.
        let ended = unsafe { sys::cuStreamEndCapture(self.handle, &mut graph) };
        worked?;
        check("cuStreamEndCapture", ended)?;
        // SAFETY: a graph that was just made, which is not needed once it is instantiated.
        let instantiated = unsafe {
            let code = sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
            sys::cuGraphDestroy(graph);
            code
        };
        check("cuGraphInstantiate", instantiated)?;
        // SAFETY: live handles.
        check("cuGraphUpload", unsafe {
            sys::cuGraphUpload(ready, self.handle)
        })?;
        Ok(Graph {
            handle: ready,
            _device: self.device.clone(),
        })
    }

    pub fn run(&self, graph: &Graph) -> Result<()> {
        // SAFETY: live handles.
        check("cuGraphLaunch", unsafe {
            sys::cuGraphLaunch(graph.handle, self.handle)
        })
    }

    /// What comes from here on waits until the other stream has come to `event`.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: live handles.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.handle, event.handle, 0)
        })
    }

    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: live handles.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(event.handle, self.handle)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: made in `new`; the driver lets work under way finish.
        unsafe {
            sys::cuStreamSynchronize(self.handle);
            sys::cuStreamDestroy_v2(self.handle);
        }
    }
}

fn attribute(id: sys::CUlaunchAttributeID) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { pad: [0; 64] },
    }
}

fn in_clusters(shape: Shape) -> sys::CUlaunchAttribute {
    let mut attribute = attribute(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
    attribute.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
        x: shape.cluster.max(1),
        y: 1,
        z: 1,
    };
    attribute
}

/// To be used while `attributes` live.
fn config(
    shape: Shape,
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: shape.grid.0,
        gridDimY: shape.grid.1,
        gridDimZ: shape.grid.2,
        blockDimX: shape.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shape.shared,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

/// How a kernel is spread out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub grid: (u32, u32, u32),
    pub threads: u32,
    /// Bytes of shared memory asked for at launch.
    pub shared: u32,
    /// Blocks of a cluster.
    pub cluster: u32,
}

impl Shape {
    pub fn of(grid: (usize, usize, usize), threads: u32) -> Self {
        Self {
            grid: (grid.0 as u32, grid.1 as u32, grid.2 as u32),
            threads,
            shared: 0,
            cluster: 1,
        }
    }
}

/// A recorded step.
#[derive(Debug)]
pub(crate) struct Graph {
    handle: sys::CUgraphExec,
    _device: Arc<Device>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `capture`.
        unsafe { sys::cuGraphExecDestroy(self.handle) };
    }
}

/// A point in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    handle: sys::CUevent,
    _device: Arc<Device>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}

impl Event {
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let mut handle = null_mut();
        device.make_current()?;
        // SAFETY: a pointer to a local.
        check("cuEventCreate", unsafe {
            sys::cuEventCreate(&mut handle, 0)
        })?;
        Ok(Self {
            handle,
            _device: device.clone(),
        })
    }

    pub fn wait(&self) -> Result<()> {
        // SAFETY: a live handle.
        check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(self.handle)
        })
    }

    /// Milliseconds of the GPU's clock from `earlier` to this; both were reached.
    pub fn since(&self, earlier: &Event) -> Result<f32> {
        let mut time = 0.0;
        // SAFETY: live handles, and a pointer to a local.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime_v2(&mut time, earlier.handle, self.handle)
        })?;
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        unsafe { sys::cuEventDestroy_v2(self.handle) };
    }
}
