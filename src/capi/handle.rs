//! The tables behind the handles.

use super::status::{Answer, Failure, RUDDER_FULL, RUDDER_HANDLE};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the C ABI packs a handle into a pointer of 64 bits");

/// What a handle is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Comm = 1,
    Table = 2,
    Rows = 3,
    Registration = 4,
    Request = 5,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Comm, Self::Table, Self::Rows, Self::Registration, Self::Request];

    fn name(self) -> &'static str {
        match self {
            Self::Comm => "comm",
            Self::Table => "table",
            Self::Rows => "rows",
            Self::Registration => "registration",
            Self::Request => "request",
        }
    }
}

/// A handle: 16 bits that no address of a process begins with and that tell the kind, 28 bits of generation, 20 bits of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle(u64);

const MARK: u64 = 0x5200;
const GENERATION_BITS: u32 = 28;
const PLACE_BITS: u32 = 20;

impl Handle {
    fn new(kind: Kind, generation: u32, place: u32) -> Self {
        Self((MARK | kind as u64) << 48 | u64::from(generation) << PLACE_BITS | u64::from(place))
    }

    pub fn of<T>(pointer: *const T) -> Self {
        Self(pointer.addr() as u64)
    }

    pub fn to_pointer<T>(self) -> *mut T {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    fn kind(self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| self.0 >> 48 == MARK | *kind as u64)
    }

    fn generation(self) -> u32 {
        (self.0 >> PLACE_BITS) as u32 & ((1 << GENERATION_BITS) - 1)
    }

    fn place(self) -> usize {
        (self.0 & ((1 << PLACE_BITS) - 1)) as usize
    }
}

/// All things of one kind that this process has out.
pub(super) struct Registry<T> {
    kind: Kind,
    most: usize,
    places: Mutex<Places<T>>,
}

struct Places<T> {
    places: Vec<Place<T>>,
    /// The one that has been free for longest is given out first, so that a generation lasts.
    free: VecDeque<u32>,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Registry<T> {
    /// Of so many at most, below 2^20.
    pub const fn new(kind: Kind, most: usize) -> Self {
        assert!(most < 1 << PLACE_BITS);
        Self { kind, most, places: Mutex::new(Places { places: Vec::new(), free: VecDeque::new() }) }
    }

    fn places(&self) -> MutexGuard<'_, Places<T>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a thing a handle, if `allow`, which is asked under the lock, does.
    pub fn insert_if(&self, value: T, allow: impl FnOnce() -> Answer) -> Answer<Handle> {
        let mut guard = self.places();
        allow()?;
        let Places { places, free } = &mut *guard;
        let place = match free.pop_front() {
            Some(place) => place,
            None if places.len() < self.most => {
                places.push(Place { generation: 0, value: None });
                // Giving a handle back allocates nothing.
                free.reserve(places.len());
                places.len() as u32 - 1
            }
            None => {
                let (most, name) = (self.most, self.kind.name());
                let cause = format!("the table of handles is full ({most}): destroy a {name} before creating another");
                return Err(Failure::new(RUDDER_FULL, cause));
            }
        };
        let at = &mut places[place as usize];
        at.generation = (at.generation + 1) & ((1 << GENERATION_BITS) - 1);
        at.value = Some(value);
        Ok(Handle::new(self.kind, at.generation, place))
    }

    /// Shows the thing of a handle to `body`, which must be short: all handles of the kind wait for it.
    pub fn with<R>(&self, handle: Handle, body: impl FnOnce(&mut T) -> Answer<R>) -> Answer<R> {
        let mut places = self.places();
        body(self.find(&mut places, handle)?.value.as_mut().expect("what was found is there"))
    }

    /// Takes the thing of a handle out, if `allow` does; the handle is none from then on.
    pub fn remove_if(&self, handle: Handle, allow: impl FnOnce(&T) -> Answer) -> Answer<T> {
        let mut places = self.places();
        let place = self.find(&mut places, handle)?;
        allow(place.value.as_ref().expect("what was found is there"))?;
        let value = place.value.take().expect("what was found is there");
        places.free.push_back(handle.place() as u32);
        Ok(value)
    }

    pub fn insert(&self, value: T) -> Answer<Handle> {
        self.insert_if(value, || Ok(()))
    }

    pub fn remove(&self, handle: Handle) -> Answer<T> {
        self.remove_if(handle, |_| Ok(()))
    }

    /// Takes out one of those that `wanted` picks.
    pub fn remove_any(&self, wanted: impl Fn(&T) -> bool) -> Option<T> {
        let mut places = self.places();
        let at = places.places.iter().position(|place| place.value.as_ref().is_some_and(&wanted))?;
        let value = places.places[at].value.take();
        places.free.push_back(at as u32);
        value
    }

    fn find<'a>(&self, places: &'a mut Places<T>, handle: Handle) -> Answer<&'a mut Place<T>> {
        let name = self.kind.name();
        let refused = |cause: String| Err(Failure::new(RUDDER_HANDLE, cause));
        match handle.kind() {
            Some(kind) if kind == self.kind => {}
            Some(other) => return refused(format!("this handle is of a {}, not of a {name}", other.name())),
            None => return refused(format!("{:#x} is no handle of a {name}", handle.0)),
        }
        let place = places.places.get_mut(handle.place());
        match place.filter(|place| place.value.is_some() && place.generation == handle.generation()) {
            Some(place) => Ok(place),
            None => refused(format!("this {name} was destroyed, by itself or with its comm")),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: only what is there can be reached by a handle. Method: handles that are old, foreign, or numbers.
    use super::*;

    #[test]
    fn only_living_handles_of_the_kind_are_known() {
        let (tables, rows) = (Registry::new(Kind::Table, 2), Registry::<u32>::new(Kind::Rows, 2));
        let first = tables.insert(1).unwrap();
        let second = tables.insert(2).unwrap();
        assert_eq!(tables.insert(3).unwrap_err().status, RUDDER_FULL);
        assert_eq!(tables.with(second, |value| Ok(*value)).unwrap(), 2);
        assert!(rows.with(first, |_| Ok(())).unwrap_err().cause.contains("of a table, not of a rows"));
        assert_eq!(tables.remove(first).unwrap(), 1);
        assert!(tables.remove(first).unwrap_err().cause.contains("destroyed"));
        let third = tables.insert(3).unwrap();
        assert_eq!((third.place(), third == first), (first.place(), false));
        assert!(tables.with(first, |_| Ok(())).is_err());
        for number in [0u64, 8, u64::MAX, &raw const tables as u64, third.0 + 1, third.0 ^ 1 << 40] {
            assert_eq!(tables.with(Handle(number), |_| Ok(())).unwrap_err().status, RUDDER_HANDLE, "{number:#x}");
        }
    }

    #[test]
    fn generations_wrap_into_their_bits() {
        let tables = Registry::new(Kind::Table, 1);
        let first = tables.insert(1).unwrap();
        tables.places().places[0].generation = (1 << GENERATION_BITS) - 1;
        assert!(tables.remove(first).is_err());
        let _ = tables.remove_any(|_| true);
        let wrapped = tables.insert(2).unwrap();
        assert_eq!((wrapped.generation(), wrapped.kind()), (0, Some(Kind::Table)));
    }
}
