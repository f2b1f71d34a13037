//! The heap's memory: what finished work has freed stays with the allocator, in a heap for each thread that made it,
//! until it is asked to give whole pages back to the system.

/// Gives free pages back to the system. It takes milliseconds for each gigabyte; call it when work has ended.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "the allocator is the C library's")]
        // SAFETY: the allocator takes its own locks; the call has no arguments that could be wrong.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}
