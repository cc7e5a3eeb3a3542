//! Descriptors over a Unix socket, as many as there are.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors of one message: the kernel takes 253.
const AT_ONCE: usize = 64;

pub fn send(stream: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    for some in descriptors.chunks(AT_ONCE) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(some)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // A message needs a byte for its descriptors to travel with.
        retry_on_intr(|| sendmsg(stream, &[IoSlice::new(b".")], &mut control, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

pub fn receive(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut descriptors = Vec::new();
    while descriptors.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received =
            retry_on_intr(|| recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags))?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn as_many_as_there_are_arrive() {
        let files: Vec<File> = (0..150).map(|_| File::open("/dev/null").unwrap()).collect();
        for count in [0, 1, 64, 65, 150] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let sent: Vec<_> = files[..count].iter().map(AsFd::as_fd).collect();
            send(&ours, &sent).unwrap();
            assert_eq!(receive(&theirs, count).unwrap().len(), count);
            drop(ours);
            assert_eq!(receive(&theirs, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
