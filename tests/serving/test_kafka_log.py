"""Kafka as the event log, with the broker that the client carries and a real Redis."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from feature_repo.events.log_names import KafkaAddress
from feature_repo.events.log_position import position_key
from serving.event_log import kafka_log
from serving.event_log.dedup import HELD_S
from serving.event_log.kafka_log import KafkaLog, KafkaMissing
from serving.event_log.open import open_log
from serving.event_log.port import Appended
from serving.event_log.redis_stream import RedisStreamLog
from serving.online.features import OnlineStoreUnavailable
from tests.support.event_log import (
    client,
    die,
    event,
    in_a_process_that_is_killed,
    kill_redis,
    numbers,
    overlay,
)


class Fussy:
    """The real producer, with something in its way."""

    def __init__(self, producer, produce=None, flush=None):
        self._producer, self._produce, self._flush = producer, produce, flush

    def produce(self, topic, value, key, *, on_delivery):
        if self._produce:
            self._produce(value)
        self._producer.produce(topic, value, key, on_delivery=on_delivery)

    def flush(self, timeout):
        left = self._producer.flush(timeout)
        if self._flush:
            self._flush()
        return left

    def __getattr__(self, name):
        return getattr(self._producer, name)


class Kafka:
    def __init__(self, workspace, broker, topic):
        self.workspace, self.broker, self.topic = workspace, broker, topic
        self.address = KafkaAddress(broker.servers, topic)
        self.log = KafkaLog(workspace, self.address)

    def ids(self):
        return [
            json.loads(message.value())["event_id"] for message in self.broker.messages(self.topic)
        ]

    def fussy(self, **options):
        return KafkaLog(self.workspace, self.address, Fussy(self.log._producer, **options))


@pytest.fixture(scope="module")
def broker():
    pytest.importorskip("confluent_kafka", reason="the kafka extra is not installed")
    from tests.support.mock_kafka import MockKafka

    broker = MockKafka()
    yield broker
    broker.close()


@pytest.fixture
def kafka(workspace, broker, monkeypatch):
    monkeypatch.setattr(kafka_log, "_DELIVERY_MS", 1_500)
    topic = f"accepted{next(numbers)}"
    broker.create(topic)
    with client(workspace) as server:
        server.flushall()
    return Kafka(workspace, broker, topic)


def test_kafka_has_what_was_accepted_in_order_and_by_user(kafka):
    events = [event(f"u{n % 2}", item=f"i{n}") for n in range(6)]
    assert kafka.log.append([*events, events[0]]) == Appended(6, (6,))
    assert kafka.log.append([*events, late := event("u1", item="ключ")]) == Appended(
        1, tuple(range(6))
    )
    found = kafka.broker.messages(kafka.topic)
    assert [json.loads(message.value()) for message in found] == [*events, late]
    assert [message.key().decode() for message in found] == [e["user_id"] for e in [*events, late]]
    seen = overlay(kafka.workspace, "u1")
    assert [item for _, item in seen] == ["i1", "i3", "i5", "ключ"]
    assert [position_key(at)[1] for at, _ in seen] == [
        1,
        3,
        5,
        6,
    ]  # the offsets; the time is the broker's


def test_what_the_broker_refuses_is_taken_when_it_is_sent_again(kafka):
    kafka.log.append([event()])
    kafka.broker.fail_next(10)  # MSG_SIZE_TOO_LARGE, which the client does not try again
    with pytest.raises(OnlineStoreUnavailable, match="did not take 1 events"):
        kafka.log.append([e := event()])
    assert e["event_id"] not in kafka.ids()
    assert kafka.log.append([e]) == Appended(1)
    assert kafka.ids().count(e["event_id"]) == 1


def test_the_clients_own_retries_do_not_double(kafka):
    kafka.log.append([event()])
    kafka.broker.fail_next(6, 7, 19)  # not the leader, timed out, not enough replicas
    assert kafka.log.append([event(), event()]) == Appended(2)
    assert len(kafka.ids()) == 3


def test_a_broker_that_is_down_and_back(kafka):
    kafka.log.append([event()])
    kafka.broker.go_down()
    try:
        with pytest.raises(OnlineStoreUnavailable, match="Kafka"):
            kafka.log.append([e := event()])
    finally:
        kafka.broker.come_up()
    deadline = time.monotonic() + 10
    while True:
        try:
            answer = kafka.log.append([e])
            break
        except OnlineStoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert answer == Appended(1)
    assert kafka.ids().count(e["event_id"]) == 1


def test_a_part_that_was_taken_is_a_duplicate_in_the_retry(kafka):
    def refuse(value):
        if b"unlucky" in value:
            raise BufferError("queue full")

    batch = [event(), event(item="unlucky"), event()]
    with pytest.raises(OnlineStoreUnavailable, match="did not take 1 events: queue full"):
        kafka.fussy(produce=refuse).append(batch)
    assert kafka.log.append(batch) == Appended(1, (0, 2))
    assert sorted(kafka.ids()) == sorted(e["event_id"] for e in batch)


def test_a_kill_before_the_write_is_never_a_repeat_of_nothing(kafka):
    e = event("victim")
    doomed = kafka.fussy(produce=die)
    doomed._check_topic()  # a forked process has no threads of the client's
    in_a_process_that_is_killed(lambda: doomed.append([e]))
    assert kafka.ids() == []
    with pytest.raises(OnlineStoreUnavailable, match="is being written"):
        kafka.log.append([e, event()])
    with client(kafka.workspace) as server:
        (mark,) = server.keys("funnel:writing:*")
        assert 0 < server.ttl(mark) <= HELD_S
        server.pexpire(mark, 1)  # a minute passes
    time.sleep(0.05)
    assert kafka.log.append([e]) == Appended(1)
    assert kafka.ids() == [e["event_id"]]


def test_redis_killed_after_the_write_does_not_take_the_acceptance_back(kafka, caplog):
    def end(workspace=kafka.workspace):
        kill_redis(workspace)

    assert kafka.fussy(flush=end).append([e := event()]) == Appended(1)
    assert "not marked in Redis" in caplog.text
    assert kafka.ids() == [e["event_id"]]
    RedisStreamLog(kafka.workspace)  # starts it again


def test_an_event_from_many_senders_at_once_is_in_kafka_once(kafka):
    shared = event("shared")
    others = [event(f"u{n}") for n in range(40)]

    def send(other):
        while True:
            try:
                return kafka.log.append([shared, other])
            except OnlineStoreUnavailable:
                time.sleep(0.005)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, others))
    assert sorted(kafka.ids()) == sorted(e["event_id"] for e in [shared, *others])
    assert sum(answer.accepted for answer in answers) == 41
    with client(kafka.workspace) as server:
        assert server.keys("funnel:writing:*") == []


def test_a_topic_of_several_partitions_is_refused(workspace, broker):
    broker.create("wide", 3)
    with pytest.raises(OnlineStoreUnavailable, match="wide has 3 partitions"):
        KafkaLog(workspace, KafkaAddress(broker.servers, "wide")).append([event()])


def test_nobody_at_the_address(kafka):
    log = KafkaLog(kafka.workspace, KafkaAddress("127.0.0.1:1", "t"))
    with pytest.raises(OnlineStoreUnavailable, match="Kafka does not answer"):
        log.append([event()])


def test_the_missing_client_is_named(monkeypatch, workspace):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    monkeypatch.setenv("FUNNEL_EVENT_LOG", "kafka://a:9092/t")
    with pytest.raises(KafkaMissing, match=r"pip install '\.\[kafka\]'"):
        open_log(workspace)
