//! A machine whose queues run side by side, in whatever order an adversary chooses among those that the events
//! allow. Copies and launches take a while: when another one begins that touches the same memory, that is a collision.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use candle_core::Result;

use crate::kernels::cuda::emulator::{Emulator, Memory};
use crate::kernels::cuda::launch::{Argument, Element, Launch, Machine, Value, View};
use crate::kernels::cuda::paged::{Copier, Queue};
use crate::kernels::cuda::product::Product;
use crate::rng::Rng;

/// Addresses from the first to the one behind the last.
type Region = (u64, u64);
/// What a task does when it ends.
type Effect = Box<dyn FnOnce(&Emulator)>;

/// What is given to a queue.
enum Task {
    Work { touches: Vec<Region>, effect: Effect },
    Record(usize),
    Wait(usize),
}

/// The machine, and the copier beside it.
#[derive(Clone)]
pub(super) struct Adversary {
    emulator: Rc<Emulator>,
    pub(super) state: Rc<RefCell<State>>,
}

pub(super) struct State {
    rng: Rng,
    /// Which queues it likes to let go on, and which to keep.
    likes: [u64; 3],
    queues: [VecDeque<Task>; 3],
    /// What began in each queue and has not ended.
    under_way: [Option<(Vec<Region>, Effect)>; 3],
    /// Which events have come.
    events: Vec<bool>,
    /// Memory that two tasks were at work on at once.
    pub(super) collisions: usize,
    /// How many waits there were, and the one that is left out.
    pub(super) waits: usize,
    left_out: Option<usize>,
    pub(super) device_bytes: usize,
    pub(super) pinned_bytes: usize,
}

impl Adversary {
    pub(super) fn new(emulator: &Rc<Emulator>, seed: u64, left_out: Option<usize>) -> Self {
        let mut rng = Rng::new(seed, "adversary", 0);
        let likes = [(); 3].map(|()| 1 + 9 * rng.below(2) + 90 * rng.below(2));
        let state = State {
            rng,
            likes,
            queues: Default::default(),
            under_way: Default::default(),
            events: Vec::new(),
            collisions: 0,
            waits: 0,
            left_out,
            device_bytes: 0,
            pinned_bytes: 0,
        };
        Self { emulator: emulator.clone(), state: Rc::new(RefCell::new(state)) }
    }

    fn give(&self, queue: Queue, touches: Vec<Region>, effect: impl FnOnce(&Emulator) + 'static) {
        let task = Task::Work { touches, effect: Box::new(effect) };
        self.state.borrow_mut().queues[queue as usize].push_back(task);
    }

    #[expect(unsafe_code, reason = "memory is copied by its address")]
    fn give_copy(&self, queue: Queue, from: Region, to: Region) {
        assert_eq!(from.1 - from.0, to.1 - to.0);
        // SAFETY: both regions belong to memory that outlives the queues, of as many bytes.
        let copy = move |_: &Emulator| unsafe {
            std::ptr::copy_nonoverlapping(from.0 as *const u8, to.0 as *mut u8, (from.1 - from.0) as usize);
        };
        self.give(queue, vec![from, to], copy);
    }
}

impl State {
    /// One thing begins or ends somewhere; whether there was one.
    fn go_on(&mut self, emulator: &Emulator) -> bool {
        let ready = |queue: usize| {
            self.under_way[queue].is_some()
                || match self.queues[queue].front() {
                    Some(Task::Wait(event)) => self.events[*event],
                    other => other.is_some(),
                }
        };
        let chances: Vec<(usize, u64)> = (0..3).filter(|queue| ready(*queue)).map(|at| (at, self.likes[at])).collect();
        let all: u64 = chances.iter().map(|(_, chance)| chance).sum();
        if all == 0 {
            return false;
        }
        let mut draw = self.rng.below(all);
        let mut queue = 0;
        for (at, chance) in chances {
            queue = at;
            if draw < chance {
                break;
            }
            draw -= chance;
        }
        if let Some((_, effect)) = self.under_way[queue].take() {
            effect(emulator);
            return true;
        }
        match self.queues[queue].pop_front() {
            Some(Task::Record(event)) => self.events[event] = true,
            Some(Task::Work { touches, effect }) => {
                let others = self.under_way.iter().flatten().flat_map(|(regions, _)| regions);
                let meets = |region: &Region| touches.iter().any(|own| own.0 < region.1 && region.0 < own.1);
                self.collisions += others.filter(|region| meets(region)).count();
                self.under_way[queue] = Some((touches, effect));
            }
            Some(Task::Wait(_)) | None => {}
        }
        true
    }
}

fn region(view: View<'_>) -> Region {
    (view.address, view.address + (view.len * view.element.size()) as u64)
}

impl Machine for Adversary {
    type Memory = Memory;

    /// Memory comes with the work, and holds what it held before.
    #[expect(unsafe_code, reason = "memory is written by its address")]
    fn allocate(&self, element: Element, len: usize) -> Result<Memory> {
        let memory = self.emulator.allocate(element, len)?;
        let (from, to) = region(self.emulator.view(&memory));
        // SAFETY: the memory outlives the queues.
        let taken = move |_: &Emulator| unsafe { std::ptr::write_bytes(from as *mut u8, 0xff, (to - from) as usize) };
        self.give(Queue::Work, vec![(from, to)], taken);
        self.state.borrow_mut().device_bytes += (to - from) as usize;
        Ok(memory)
    }

    fn zeros(&self, element: Element, len: usize) -> Result<Memory> {
        self.emulator.zeros(element, len)
    }

    fn upload<T: Value>(&self, values: &[T]) -> Result<Memory> {
        self.emulator.upload(values)
    }

    fn download<T: Value>(&self, memory: &Memory) -> Result<Vec<T>> {
        self.settle()?;
        self.emulator.download(memory)
    }

    fn view<'a>(&self, memory: &'a Memory) -> View<'a> {
        self.emulator.view(memory)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let mut touches = Vec::new();
        let arguments = launch.arguments.iter().map(|argument| match *argument {
            Argument::Memory(view) => {
                touches.push(region(view));
                Argument::Memory(View::new(view.address, view.element, view.len))
            }
            Argument::U32(value) => Argument::U32(value),
            Argument::U64(value) => Argument::U64(value),
            Argument::F32(value) => Argument::F32(value),
            Argument::F64(value) => Argument::F64(value),
        });
        let later: Launch<'static> = Launch {
            module: launch.module,
            kernel: launch.kernel.clone(),
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            arguments: arguments.collect(),
        };
        self.give(Queue::Work, touches, move |emulator| emulator.launch(&later).unwrap());
        Ok(())
    }

    fn multiply(&self, _: &Product<'_>) -> Result<()> {
        panic!("an update multiplies no matrices")
    }
}

impl Copier for Adversary {
    type On = Self;
    type Pinned = Box<[f32]>;
    type Event = usize;

    fn machine(&self) -> &Self {
        self
    }

    fn pin(&self, len: usize) -> Result<Box<[f32]>> {
        self.state.borrow_mut().pinned_bytes += 4 * len;
        Ok(vec![0.0; len].into())
    }

    fn len(&self, pinned: &Box<[f32]>) -> usize {
        pinned.len()
    }

    fn values<'a>(&self, pinned: &'a Box<[f32]>) -> Result<&'a [f32]> {
        assert!(self.state.borrow().queues.iter().all(VecDeque::is_empty), "someone looks who has not settled");
        Ok(pinned)
    }

    fn values_mut<'a>(&self, pinned: &'a mut Box<[f32]>) -> Result<&'a mut [f32]> {
        assert!(self.state.borrow().queues.iter().all(VecDeque::is_empty), "someone writes who has not settled");
        Ok(pinned)
    }

    fn copy_in(&self, from: &Box<[f32]>, to: View<'_>) -> Result<()> {
        self.give_copy(Queue::In, region(View::new(from.as_ptr() as u64, Element::F32, from.len())), region(to));
        Ok(())
    }

    fn copy_out(&self, from: View<'_>, to: &mut Box<[f32]>) -> Result<()> {
        let to = View::new(to.as_mut_ptr() as u64, Element::F32, to.len());
        self.give_copy(Queue::Out, region(from), region(to));
        Ok(())
    }

    fn record(&self, queue: Queue) -> Result<usize> {
        let mut state = self.state.borrow_mut();
        let event = state.events.len();
        state.events.push(false);
        state.queues[queue as usize].push_back(Task::Record(event));
        Ok(event)
    }

    fn wait(&self, queue: Queue, event: &usize) -> Result<()> {
        let mut state = self.state.borrow_mut();
        if state.left_out != Some(state.waits) {
            state.queues[queue as usize].push_back(Task::Wait(*event));
        }
        state.waits += 1;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        let mut state = self.state.borrow_mut();
        while state.go_on(&self.emulator) {}
        let idle = state.queues.iter().all(VecDeque::is_empty) && state.under_way.iter().all(Option::is_none);
        assert!(idle || std::thread::panicking(), "queues wait for each other");
        Ok(())
    }
}
