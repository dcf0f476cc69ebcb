"""Images in memory that processes share: what is read there is what was written, or is known not to be."""

import fcntl
import mmap
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from bench import image_bytes, wait_for
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import UInt64MultiArray
from test_demand_flow import Chain, captured_of, share_only

from edge_resnet.conversions import Header, ResultError, Stamp, read_image, read_numbers, stamp_ns, view_of, write_image, write_numbers
from edge_resnet.exceptions import ImageError
from edge_resnet.nodes import places as places_module
from edge_resnet.nodes import shared_images
from edge_resnet.nodes.frames import FRAME_QOS, OFFER_QOS, FrameOutput, memory_topic, shared_topic
from edge_resnet.nodes.preprocess_node import PreprocessNode
from edge_resnet.nodes.shared_images import NAME, SLOTS, InPlace, MappedImages, SharedImages

HEADER = Header(Stamp(1, 2), 'lens')


def view(level, shape=(4, 6, 3)):
    return view_of(HEADER, np.full(shape, level, np.uint8), 'rgb8')


def test_an_image_from_memory_is_the_same_message(bench, monkeypatch):
    """Published, too, whatever came before it, and when rcl refuses it: then rclpy publishes it, or tells why not."""
    publisher = bench.probe.create_publisher(Image, 'kept', FRAME_QOS)
    taken: list[bytes] = []
    bench.probe.create_subscription(Image, 'kept', taken.append, FRAME_QOS, raw=True)
    offers, rng = [], np.random.default_rng(1)
    images = SharedImages(publisher, lambda *offer: offers.append(offer))
    wait_for(publisher.get_subscription_count, 'a subscriber')
    expected = []
    for number, (shape, encoding, frame_id) in enumerate([((4, 6, 3), 'rgb8', 'lens'), ((4, 6, 3), 'rgb8', 'lens'), ((4, 6, 3), 'bgr8', 'lens'),
                                                          ((6, 4, 3), 'bgr8', 'lens'), ((6, 4, 3), 'bgr8', 'lens two'), ((9, 5), 'mono8', 'lens'),
                                                          ((480, 640, 3), 'rgb8', 'lens'), ((4, 6, 3), 'rgb8', 'lens')]):
        image, header = rng.integers(0, 255, shape, np.uint8), Header(Stamp(number, 7 * number), frame_id)
        with monkeypatch.context() as patch:
            if number % 3 == 1:
                patch.setattr(shared_images, '_publish', lambda *_: 1)
            images.write(view_of(header, image, encoding), number)
            images.publish()
        expected.append(write_image(header, image, encoding))
        identity, written, at, length = images.place
        memory = MappedImages(*offers[-1])
        assert (identity, written) == (offers[-1][2], number)
        image = memory.image(number, at, length)
        assert image.bytes == expected[-1]
        assert image.intact()
        wait_for(lambda: len(taken) == len(expected), f'image {len(expected)}')
    assert taken == expected, 'those that were received before, too'
    assert len(offers) == 2, 'another memory only for what is larger'
    bench.probe.destroy_publisher(publisher)
    with pytest.raises(Exception, match='destruction was requested'):
        images.publish()


def test_an_image_is_intact_until_its_place_is_about_to_be_written_to_again():
    offers: list[tuple[int, int, int]] = []
    images = SharedImages(None, lambda *offer: offers.append(offer))
    images.write(view(0), 7)
    memory, place = MappedImages(*offers[0]), images.place[1:]
    image = memory.image(*place)
    for later in range(SLOTS - 1):
        assert image.intact()
        assert set(read_image(image.bytes).data) == {0}
        images.write(view(1 + later), 8 + later)
    assert not image.intact()
    assert set(read_image(memory.image(*images.place[1:]).bytes).data) == {SLOTS - 1}
    for wrong in (7 + SLOTS, 2**64 - 1):  # which is still to come
        assert not memory.image(wrong, *place[1:]).intact()
    for wrong_place in ((0, 100), (place[1], 1 << 40), (len(memory._bytes) - 1, 2), (1 << 63, 1)):
        with pytest.raises(ImageError, match='expected within'):
            memory.image(images.place[1], *wrong_place)
    with pytest.raises(TypeError):
        image.bytes[0] = 1  # its publisher's alone


def test_memory_of_a_larger_image_leaves_readers_what_they_had():
    offers: list[tuple[int, int, int]] = []
    images = SharedImages(None, lambda *offer: offers.append(offer))
    images.write(view(5), 0)
    memory, place = MappedImages(*offers[0]), images.place[1:]
    images.write(view(6, (400, 600, 3)), 1)
    assert set(read_image(memory.image(*place).bytes).data) == {5}
    with pytest.raises(ImageError):
        MappedImages(*offers[0])  # closed, or taken by the next one, whose identity is another
    assert set(read_image(MappedImages(*offers[1]).image(*images.place[1:]).bytes).data) == {6}
    images.close()
    images.close()
    with pytest.raises(ImageError):
        MappedImages(*offers[1])


def test_memory_that_is_not_to_be_had_for_once_is_made_with_the_next_image(monkeypatch):
    offers: list[tuple[int, int, int]] = []
    images = SharedImages(None, lambda *offer: offers.append(offer))
    images.write(view(5), 0)

    def refuse(*_):
        raise OSError('no memory')

    with monkeypatch.context() as patch:
        patch.setattr(mmap, 'mmap', refuse)
        for number in (1, 2):
            with pytest.raises(OSError, match='no memory'):
                images.write(view(6, (400, 600, 3)), number)
    images.write(view(7, (400, 600, 3)), 3)
    assert set(read_image(MappedImages(*offers[-1]).image(*images.place[1:]).bytes).data) == {7}


def test_an_image_is_not_intact_once_anything_in_its_place_is_another(monkeypatch):
    """Not even when those between were not written, since nobody wanted them, and the next is laid out in another way."""
    offers: list[tuple[int, int, int]] = []
    images = SharedImages(None, lambda *offer: offers.append(offer))
    images.write(view(5), 1)
    image, intact = MappedImages(*offers[0]).image(*images.place[1:]), []
    write_head = shared_images.write_head
    monkeypatch.setattr(shared_images, 'write_head', lambda *given: intact.append(image.intact()) or write_head(*given))
    images.write(view(6, (6, 4, 3)), 1 + SLOTS)
    assert intact == [False]


def test_only_memory_of_images_is_mapped(tmp_path, monkeypatch):
    offers: list[tuple[int, int, int]] = []
    images = SharedImages(None, lambda *offer: offers.append(offer))
    images.write(view(5), 0)
    pid, file, identity = offers[0]
    open_before = len(os.listdir('/proc/self/fd'))
    with pytest.raises(ImageError, match='of somebody else'):
        MappedImages(pid, file, identity + 1)
    with subprocess.Popen([sys.executable, '-c', 'pass']) as gone:
        gone.wait()
        with pytest.raises(ImageError, match="can't be mapped"):
            MappedImages(gone.pid, file, identity)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'readlink', lambda path, readlink=os.readlink: f'net:[{path}]' if path.endswith('net') else readlink(path))
        with pytest.raises(ImageError, match='another host'):
            MappedImages(pid, file, identity)
    (tmp_path / 'file').write_bytes(bytes(10_000))
    plain = os.open(tmp_path / 'file', os.O_RDONLY)
    end, other_end = os.pipe()
    for descriptor in (plain, end):  # opening a pipe's end, or a device, may have consequences
        with pytest.raises(ImageError, match='is not shared memory'):
            MappedImages(pid, descriptor, identity)
    unsealed = os.memfd_create(NAME, os.MFD_ALLOW_SEALING)
    os.write(unsealed, identity.to_bytes(8, 'little') + bytes(mmap.PAGESIZE))
    with pytest.raises(ImageError, match='may shrink'):  # reading beyond its end would end this process
        MappedImages(pid, unsealed, identity)
    fcntl.fcntl(unsealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    MappedImages(pid, unsealed, identity)
    empty = os.memfd_create(NAME, os.MFD_ALLOW_SEALING)
    fcntl.fcntl(empty, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    for unmappable in (empty, 10 ** 6, 2 ** 64 - 1):
        with pytest.raises(ImageError, match="can't be mapped"):
            MappedImages(pid, unmappable, identity)
    os.ftruncate(unsealed, 1 << 40)
    with pytest.raises(ImageError, match='expected at most'):  # whose pages reading would make
        MappedImages(pid, unsealed, identity)
    for descriptor in (plain, end, other_end, unsealed, empty):
        os.close(descriptor)
    assert len(os.listdir('/proc/self/fd')) == open_before


def test_without_shared_memory_images_are_published_all_the_same(bench, monkeypatch):
    monkeypatch.setattr(os, 'memfd_create', lambda *_: os.open('/nonexistent', os.O_RDONLY))
    publisher, offers = bench.probe.create_publisher(Image, 'kept', FRAME_QOS), []
    taken = bench.listen(Image, 'kept', FRAME_QOS)
    images = SharedImages(publisher, lambda *offer: offers.append(offer))
    wait_for(publisher.get_subscription_count, 'a subscriber')
    images.write(view(7), 1)
    images.publish()
    wait_for(lambda: taken, 'the image')
    assert set(taken[0].data) == {7}
    assert not offers


@pytest.mark.parametrize(('data', 'count'), [(write_numbers(1, 2), 3), (write_numbers(1, 2, 3), 2), (b'', 1), (b'\0\1\0\0' + bytes(8), 1),
                                             (b'\0\7' + write_numbers(1)[2:], 1), (write_numbers(1)[:4] + b'\1' + write_numbers(1)[5:], 1)])
def test_other_numbers_than_expected_are_refused(data, count):
    with pytest.raises(ResultError, match='numbers'):
        read_numbers(data, count)
    assert read_numbers(write_numbers(0, 2**64 - 1), 2) == (0, 2**64 - 1)


@pytest.fixture
def chain(bench, paper_bundle, monkeypatch):
    share_only(monkeypatch)
    chain = Chain(bench, paper_bundle)
    wait_for(lambda: shared(chain), 'images that are shared')
    return chain


def shared(chain):
    return [node._input._places.sharing and node._input._subscription is None for node in (chain.preprocess, chain.inference)] == [True, True]


def test_what_is_shared_is_not_published(chain, monkeypatch):
    published = []
    publish = SharedImages.publish
    monkeypatch.setattr(SharedImages, 'publish', lambda self: published.append(1) or publish(self))
    wait_for(lambda: not chain.camera._image.publisher.get_subscription_count() + chain.preprocess._output.publisher.get_subscription_count(),
             'nobody who wants it published')
    published.clear()
    chain.during(4)
    assert not published
    assert chain.preprocess._input.lost == chain.inference._input.lost == chain.preprocess.counts['errors'] == chain.inference.counts['errors'] == 0
    stamps = [stamp_ns(result.header) for result in chain.results]
    assert stamps == sorted(set(stamps)), 'each once'


def test_whoever_subscribes_to_everything_gets_every_image_and_takes_nobodys(chain):
    """As a recorder of all topics does, which hears the places, too."""
    recorder = chain.bench.spin(Node('recorder'))
    heard = {topic: [] for topic in ('image_raw', 'image_preprocessed')}
    places: list[UInt64MultiArray] = []
    for topic, images in heard.items():
        recorder.create_subscription(Image, topic, images.append, qos_profile_sensor_data)
        recorder.create_subscription(UInt64MultiArray, shared_topic(topic), places.append, qos_profile_sensor_data)
        recorder.create_subscription(UInt64MultiArray, memory_topic(topic), lambda _: None, OFFER_QOS)
    wait_for(lambda: all(len(images) > 3 for images in heard.values()), 'both topics')
    before, captured = len(heard['image_raw']), captured_of(chain.camera)
    wait_for(lambda: len(heard['image_raw']) >= before + 20, '20 images')
    assert captured_of(chain.camera) - captured < 40, 'about each frame that was captured'
    assert places
    assert shared(chain)
    assert {len(image.data) for image in heard['image_raw']} == {64 * 48 * 3}
    chain.during(3)


def test_a_camera_that_does_not_share_is_heard_and_one_that_does_is_shared_with_again(chain):
    chain.camera.trigger_deactivate()
    foreign = chain.bench.probe.create_publisher(Image, 'image_raw', FRAME_QOS)
    wait_for(foreign.get_subscription_count, 'a subscription')
    assert not chain.preprocess._input._places.sharing
    before = chain.preprocess._input.received

    def heard():
        foreign.publish(image_bytes(1))
        return chain.preprocess._input.received > before + 2

    wait_for(heard, 'its images')
    chain.bench.probe.destroy_publisher(foreign)
    chain.camera.trigger_activate()
    wait_for(lambda: shared(chain), 'images that are shared')
    chain.during(3)


def test_memory_that_is_made_anew_is_mapped(chain):
    places = chain.preprocess._input._places
    for n in range(places_module.MEMORIES + 2):
        before = set(places._memories)
        chain.camera._image._images._make_room((1 + n) << 16)
        wait_for(lambda before=before: set(places._memories) - before, 'another')
        chain.during(2)
        assert shared(chain)
    wait_for(lambda: len(places._memories) == 1, 'the memory of before given back')
    assert chain.preprocess._input.lost == 0


def test_places_in_unknown_memory_are_left_for_what_is_published_and_tried_again(chain, monkeypatch):
    """As when another host's camera takes over for a while."""
    monkeypatch.setattr(places_module, 'TRIES_AGAIN_S', 3.0)
    places = chain.preprocess._input._places
    with monkeypatch.context() as patch:
        patch.setattr(MappedImages, 'has', lambda self, number: False)
        wait_for(lambda: not places.sharing and not chain.inference._input._places.sharing, 'the end of sharing')
        chain.during(3)
        assert chain.preprocess._input._subscription is not None
        assert places.subscription is None
    wait_for(lambda: shared(chain), 'images that are shared', 30.0)
    chain.during(3)
    assert chain.preprocess.counts['errors'] == 0


def test_another_publisher_whose_memory_is_not_to_be_had_is_not_tried_again_and_again(chain, monkeypatch):
    """As when a camera on another host takes over before this one's is known to be gone."""
    monkeypatch.setattr(places_module, 'TRIES_AGAIN_S', 0.1)
    places = chain.preprocess._input._places
    with monkeypatch.context() as patch:
        patch.setattr(places_module, 'MappedImages', unmappable)
        chain.camera._image._images._room = 0  # whose next memory is another's
        chain.camera._image._images._slots = [None] * SLOTS
        wait_for(lambda: not places._memories, 'the memory of before given back')
        chain.during(3)
        assert chain.preprocess._input._subscription is not None
        assert (places.subscription, places.sharing) == (None, False)


def unmappable(*_):
    raise ImageError('on another host')


def test_an_input_that_ends_sharing_while_its_thread_reads_a_place_shares_no_more(chain):
    places = chain.inference._input._places
    values, states = {'_last': places._last}, []

    class Ended(type(places)):
        @property
        def _last(self):
            return values['_last']

        @_last.setter
        def _last(self, value):  # as from the executor's thread, between two lines of the other one
            values['_last'] = value
            if self.subscription is not None and self._allowed:
                self._allowed = False
                self.settle(False, 0)

        def _image(self, *given):
            image = super()._image(*given)
            states.append((self.sharing, self.subscription is not None))
            return image

    places._allowed = True
    places.__class__ = Ended
    wait_for(lambda: not places._allowed, 'the end of sharing')
    wait_for(lambda: states, 'an image')
    assert (True, False) not in states
    chain.during(3)


def test_when_nobody_shares_any_more_the_memory_is_given_back(chain):
    places = chain.preprocess._input._places
    for publisher in (chain.camera._image._shared, chain.camera._image._memory):
        assert chain.camera.destroy_publisher(publisher)
    chain.camera._image._images = None
    wait_for(lambda: not places._memories and chain.preprocess._input._subscription is not None, 'the end of sharing')
    inference = chain.inference._input._places
    chain.inference.trigger_deactivate()
    assert not inference._memories


def test_an_input_that_is_not_asked_for_frames_tries_no_longer_than_that(bench, paper_bundle, monkeypatch):
    """Both subscriptions together count as somebody who wants every frame."""
    share_only(monkeypatch)
    chain = Chain(bench, paper_bundle)
    places = chain.preprocess._input._places
    wait_for(lambda: chain.preprocess._input.received, 'a frame')
    chain.inference._input.asks = chain.inference._input.asking = False
    chain.inference.trigger_deactivate()
    wait_for(lambda: places.sharing or places._again_s, 'the end of trying')
    wait_for(lambda: not chain.camera._image.every_frame(), 'a camera that rests')


@pytest.mark.parametrize('cut', [False, True])
def test_an_image_that_is_overwritten_while_it_is_used_is_not_published(bench, paper_bundle, monkeypatch, cut):
    """Nor is what it looks like then anybody's fault. The next ones are copied first, so that a node that is slow gets any."""
    process, overwritten = PreprocessNode._process, []

    def slow(self, header, decode):
        image, order = decode()
        if isinstance(self._input._in_use, InPlace):
            output = chain.camera._image
            with chain.camera._lock:
                for _ in range(SLOTS):
                    output._number += 1
                    output._images.write(view(0, (48, 64, 3)), output._number)
            overwritten.append(stamp_ns(header))
            if cut:
                raise ImageError('what is no image any more')
        process(self, header, lambda: (image, order))

    monkeypatch.setattr(PreprocessNode, '_process', slow)
    share_only(monkeypatch)
    chain = Chain(bench, paper_bundle)
    wait_for(lambda: overwritten, 'one that is overwritten')
    chain.during(3)
    assert len(overwritten) == 1
    assert chain.preprocess._input._places.copies
    assert chain.preprocess._input.superseded > 0
    assert chain.preprocess._input.refused == chain.preprocess.counts['errors'] == 0
    assert overwritten[0] not in {stamp_ns(result.header) for result in chain.results}


def test_an_image_that_needs_no_resizing_is_no_longer_in_its_publishers_memory(bench, paper_bundle, monkeypatch):
    """Which writes others there while it is still handed on."""
    shared_with, publish = [], FrameOutput.publish
    share_only(monkeypatch)
    preprocess = bench.start(PreprocessNode, model=str(paper_bundle))
    side = preprocess._spec.width
    images = SharedImages(bench.probe.create_publisher(Image, 'unused', FRAME_QOS), lambda *offer: offers.append(offer))
    offers: list[tuple[int, int, int]] = []
    images.write(view(3, (side, side, 3)), 1)
    place = MappedImages(*offers[0]).image(*images.place[1:])
    monkeypatch.setattr(FrameOutput, 'publish', lambda self, frame: shared_with.append(frame) or publish(self, frame))
    preprocess._input._use(place)
    images.write(view(9, (side, side, 3)), 1)
    assert set(shared_with[0].data) == {3}


def test_whoever_replays_what_was_recorded_is_heard(chain):
    """`ros2 bag record -a` has the places, too, whose memory may still be mapped; what was in it is gone, or has been used."""
    recorded = []
    recorder = chain.bench.spin(Node('recorder'))
    recorder.create_subscription(UInt64MultiArray, shared_topic('image_raw'), recorded.append, FRAME_QOS)
    wait_for(lambda: len(recorded) > 5, 'places')
    chain.camera.trigger_deactivate()
    time.sleep(0.5)
    images, places = chain.bench.publisher(Image, 'image_raw'), chain.bench.publisher(UInt64MultiArray, shared_topic('image_raw'))
    before, sent = chain.preprocess.counts['published'], 0

    def heard():
        nonlocal sent
        places.publish(recorded[sent % len(recorded)])
        images.publish(image_bytes(1 + sent))
        sent += 1
        time.sleep(0.05)
        return chain.preprocess.counts['published'] > before + 10

    wait_for(heard, 'images')
    assert not chain.preprocess._input._places.sharing


def test_a_stranger_on_the_topics_of_sharing_does_no_harm(chain):
    places, offers = (chain.bench.probe.create_publisher(UInt64MultiArray, topic, qos)
                      for topic, qos in ((shared_topic('image_raw'), FRAME_QOS), (memory_topic('image_raw'), OFFER_QOS)))
    identity, latest = chain.preprocess._input._places._last
    offers.publish(UInt64MultiArray(data=[1, 2, 3]))
    offers.publish(UInt64MultiArray(data=[2**64 - 1] * 3))
    theirs: list[tuple[int, int, int]] = []
    false = SharedImages(None, lambda *offer: theirs.append(offer))
    false.write(view(0, (48, 64, 3)), 1)
    false._latest[0] = identity
    before = chain.preprocess._input._places._memories[identity]
    offers.publish(UInt64MultiArray(data=[*theirs[0][:2], identity]))  # memory that says it is the camera's
    for other in range(1, 2 + places_module.MEMORIES):  # and more of them than are kept
        time.sleep(0.6)
        false._latest[0] = identity ^ other
        offers.publish(UInt64MultiArray(data=[*theirs[0][:2], identity ^ other]))
    chain.during(3)
    assert chain.preprocess._input._places._memories[identity] is before
    wait_for(places.get_subscription_count, 'a subscription')
    for place in ([], [identity, latest + 2, 0, 100], [identity, latest + 2, 1 << 40, 100], [identity, 2**64 - 1, 4096, 100], [5, 1, 4096, 100]):
        places.publish(UInt64MultiArray(data=place))
        chain.during(2)
        assert chain.preprocess._input.lost + chain.preprocess._input.superseded < 100
    for publisher in (places, offers):
        chain.bench.probe.destroy_publisher(publisher)
    wait_for(lambda: shared(chain), 'images that are still shared')


def test_malformed_places_spoil_no_result(bench, paper_bundle, monkeypatch):
    """A slow model looks for the next image before it tells the result."""
    share_only(monkeypatch)
    chain = Chain(bench, paper_bundle)
    wait_for(lambda: shared(chain), 'images that are shared')
    places = chain.bench.probe.create_publisher(UInt64MultiArray, shared_topic('image_preprocessed'), FRAME_QOS)
    wait_for(places.get_subscription_count, 'a subscription')
    infer, inferred = chain.inference._infer, []
    monkeypatch.setattr(chain.inference, '_infer', lambda *given: (
        inferred.append(1), tell := infer(*given), places.publish(UInt64MultiArray(data=[1])), time.sleep(0.02), tell)[-1])
    before = len(chain.results)
    wait_for(lambda: len(inferred) > 5, 'inferences')
    wait_for(lambda: len(chain.results) >= before + len(inferred) - 1, 'their results')
    assert chain.inference.counts['errors'] > 0, 'it is told'


def test_memory_goes_with_its_process(tmp_path):
    """Also when it is killed: nothing is left behind, and what was mapped stays readable."""
    code = ('import numpy as np, sys\nfrom edge_resnet.conversions import *\nfrom edge_resnet.nodes.shared_images import SharedImages\n'
            'images = SharedImages(None, lambda *offer: print(*offer, flush=True))\n'
            "images.write(view_of(Header(), np.full((48, 64, 3), 9, np.uint8), 'rgb8'), 1)\nprint(*images.place, flush=True)\nsys.stdin.read()")
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        offer = [int(text) for text in child.stdout.readline().split()]
        _, number, at, length = (int(text) for text in child.stdout.readline().split())
        memory = MappedImages(*offer)
        child.kill()
    assert set(read_image(memory.image(number, at, length).bytes).data) == {9}
    with pytest.raises(ImageError):
        MappedImages(*offer)
