//! Paged moments on a machine whose queues run side by side, in whatever order an adversary chooses among those
//! that the events allow: copies and launches take a while, and what happens to memory that another one is at work
//! on is found out.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use candle_core::Result;

use super::super::emulator::Memory;
use super::super::launch::{Argument, Launch, Value, View};
use super::super::paged::{Copier, Paged, Queue, Update};
use super::super::product::Product;
use super::*;
use crate::kernels::AdamWStep;
use crate::kernels::paging::Paging;
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
struct Adversary {
    emulator: Rc<Emulator>,
    state: Rc<RefCell<State>>,
}

struct State {
    rng: Rng,
    /// Which queues it likes to let go on, and which to keep.
    likes: [u64; 3],
    queues: [VecDeque<Task>; 3],
    /// What began in each queue and has not ended.
    under_way: [Option<(Vec<Region>, Effect)>; 3],
    /// Which events have come.
    events: Vec<bool>,
    /// Memory that two tasks were at work on at once.
    collisions: usize,
    /// How many waits there were, and the one that is left out.
    waits: usize,
    left_out: Option<usize>,
    device_bytes: usize,
    pinned_bytes: usize,
}

impl Adversary {
    fn new(emulator: &Rc<Emulator>, seed: u64, left_out: Option<usize>) -> Self {
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

/// Values of each tensor: ones that end in the middle of a page, ones within a page, one over many.
const COUNTS: [usize; 4] = [70, 9, 1, 301];
/// Updates, none of which waits for the one before.
const UPDATES: usize = 3;

fn step(number: usize, tensor: usize) -> AdamWStep {
    AdamWStep {
        scale: 0.5 + number as f32,
        keep: 0.99,
        mean_rate: 0.1,
        square_decay: 0.95,
        square_rate: 0.05,
        root_bias: 0.31,
        step: 0.02 + tensor as f32 / 100.0,
        epsilon: 1e-8,
    }
}

/// In the second update the longest tensor gets no gradient, so that most pages stay away.
fn has_gradient(number: usize, tensor: usize) -> bool {
    number != 1 || tensor != 3
}

/// Weight, mean and mean square of each tensor.
type Values = Vec<[Vec<f32>; 3]>;

/// Tensors and gradients; moments of a run that goes on, or zeros.
fn beginning(goes_on: bool) -> (Values, Vec<Vec<Vec<f32>>>) {
    let values = |count: usize, seed: usize| flat(&operand(&[count], seed as u32));
    let tensors = COUNTS.iter().enumerate().map(|(tensor, count)| {
        let weight = values(*count, 10 + tensor);
        if !goes_on {
            return [weight, vec![0.0; *count], vec![0.0; *count]];
        }
        let square = values(*count, 30 + tensor).iter().map(|value| value.abs()).collect();
        [weight, values(*count, 20 + tensor), square]
    });
    let gradients = (0..UPDATES).map(|number| {
        COUNTS.iter().enumerate().map(|(tensor, count)| values(*count, 40 + 10 * number + tensor)).collect()
    });
    (tensors.collect(), gradients.collect())
}

/// What the CPU makes of it.
fn unpaged(goes_on: bool) -> Values {
    let (mut tensors, gradients) = beginning(goes_on);
    for (number, gradients) in gradients.iter().enumerate() {
        for (tensor, [weight, mean, square]) in tensors.iter_mut().enumerate() {
            if has_gradient(number, tensor) {
                step(number, tensor).update(weight, &gradients[tensor], mean, square);
            }
        }
    }
    tensors
}

/// What paged moments make of it.
fn paged<C: Copier + Clone>(copier: &C, paging: Paging, goes_on: bool) -> Values {
    let machine = copier.machine();
    let (tensors, gradients) = beginning(goes_on);
    let mut paged = Paged::zeros(copier.clone(), paging, &COUNTS).unwrap();
    for (tensor, [_, mean, square]) in tensors.iter().enumerate().filter(|_| goes_on) {
        paged.set(tensor, mean, square).unwrap();
    }
    let weights: Vec<_> = tensors.iter().map(|[weight, ..]| machine.upload(weight).unwrap()).collect();
    let gradients: Vec<Vec<_>> =
        gradients.iter().map(|all| all.iter().map(|one| machine.upload(one).unwrap()).collect()).collect();
    for (number, gradients) in gradients.iter().enumerate() {
        let updates = (0..COUNTS.len()).filter(|tensor| has_gradient(number, *tensor)).map(|tensor| Update {
            tensor,
            step: step(number, tensor),
            weight: machine.view(&weights[tensor]),
            gradient: machine.view(&gradients[tensor]),
        });
        paged.update(&updates.collect::<Vec<_>>()).unwrap();
    }
    let read = |tensor: usize| {
        let [mean, square] = paged.values(tensor).unwrap();
        [machine.download(&weights[tensor]).unwrap(), mean, square]
    };
    (0..COUNTS.len()).map(read).collect()
}

fn same_bits(one: &Values, other: &Values) -> bool {
    let bits = |all: &Values| -> Vec<u32> { all.iter().flatten().flatten().map(|value| value.to_bits()).collect() };
    bits(one) == bits(other)
}

fn emulator() -> Option<Rc<Emulator>> {
    let emulator = Emulator::new().map(Rc::new);
    if emulator.is_none() {
        eprintln!("skipped: no C++ compiler");
    }
    emulator
}

#[test]
fn paged_moments_have_the_bits_of_unpaged_ones_in_whatever_order_the_queues_run() {
    let Some(emulator) = emulator() else { return };
    let want = [false, true].map(unpaged);
    let total = COUNTS.iter().sum::<usize>() as u64;
    for (page, buffers) in [(32, 3), (32, 2), (32, 1), (50, 3), (7, 4), (200, 2), (1000, 3)] {
        let paging = Paging { page, buffers };
        for seed in 0..12 {
            let adversary = Adversary::new(&emulator, seed, None);
            let goes_on = seed % 2 == 1;
            let got = paged(&adversary, paging, goes_on);
            assert!(same_bits(&got, &want[usize::from(goes_on)]), "{paging:?}, seed {seed}");
            let state = adversary.state.borrow();
            assert_eq!(state.collisions, 0, "{paging:?}, seed {seed}");
            assert_eq!(state.device_bytes as u64, paging.device_bytes(total), "{paging:?}");
            assert_eq!(state.pinned_bytes as u64, Paging::host_bytes(total), "{paging:?}");
        }
    }
}

#[test]
fn every_wait_keeps_something_from_going_wrong() {
    let Some(emulator) = emulator() else { return };
    // Nothing but events keeps the order here: a run that begins sets no moments, which would wait for everything.
    let want = unpaged(false);
    for buffers in [1, 2, 3] {
        let paging = Paging { page: 64, buffers };
        let counting = Adversary::new(&emulator, 0, None);
        paged(&counting, paging, false);
        let waits = counting.state.borrow().waits;
        // Six pages, then two, then six again: each is waited for when it has come and when it is done, and most
        // buffers until they are free.
        assert!(waits > 2 * (6 + 2 + 6), "{waits}");
        for left_out in 0..waits {
            let goes_wrong = (0..200).any(|seed| {
                let adversary = Adversary::new(&emulator, seed, Some(left_out));
                let differs = !same_bits(&paged(&adversary, paging, false), &want);
                differs || adversary.state.borrow().collisions > 0
            });
            assert!(goes_wrong, "wait {left_out} of {waits} with {buffers} buffers is for nothing");
        }
    }
}

#[test]
fn a_tensor_that_is_not_the_one_the_moments_were_made_for_is_refused() {
    let Some(emulator) = emulator() else { return };
    let adversary = Adversary::new(&emulator, 0, None);
    let mut paged = Paged::zeros(adversary.clone(), Paging { page: 4, buffers: 2 }, &[6, 3]).unwrap();
    assert!(paged.values(2).is_err() && paged.set(0, &[0.0; 6], &[0.0; 5]).is_err());
    let (long, short) = (adversary.upload(&[0f32; 6]).unwrap(), adversary.upload(&[0f32; 3]).unwrap());
    let update = |tensor, weight| Update {
        tensor,
        step: step(0, 0),
        weight: adversary.view(weight),
        gradient: adversary.view(weight),
    };
    assert!(paged.update(&[update(0, &short)]).is_err());
    assert!(paged.update(&[update(1, &short), update(0, &long)]).is_err());
    assert!(paged.update(&[update(0, &long), update(1, &short)]).is_ok());
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_pages_moments_without_changing_a_bit() {
    use super::super::copies::Copies;
    let Some(cuda) = super::super::device::Cuda::first() else {
        eprintln!("skipped: no GPU");
        return;
    };
    let copies = Copies::of(cuda).unwrap();
    for (page, buffers) in [(32, 3), (32, 1), (7, 4), (1000, 3)] {
        for goes_on in [false, true].repeat(10) {
            let got = paged(&copies, Paging { page, buffers }, goes_on);
            assert!(same_bits(&got, &unpaged(goes_on)), "pages of {page}, {buffers} buffers");
        }
    }
}
