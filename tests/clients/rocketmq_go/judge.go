// Sends and consumes with the official Go client as it comes (TLS, certificates unverified); prints what it saw.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	rmq "github.com/apache/rocketmq-clients/golang/v5"
	"github.com/apache/rocketmq-clients/golang/v5/credentials"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	rmq.ResetLogger()
	ctx := context.Background()
	config := func(group string) *rmq.Config {
		return &rmq.Config{Endpoint: os.Args[1], ConsumerGroup: group, Credentials: &credentials.SessionCredentials{}}
	}
	producer, err := rmq.NewProducer(config(""), rmq.WithTopics("go", "go-fifo", "go-tx"),
		rmq.WithTransactionChecker(&rmq.TransactionChecker{
			Check: func(*rmq.MessageView) rmq.TransactionResolution { return rmq.COMMIT },
		}))
	must(err)
	must(producer.Start())

	message := &rmq.Message{Topic: "go", Body: []byte("hello")}
	message.SetTag("a")
	message.SetKeys("k")
	message.AddProperty("p", "v")
	receipts, err := producer.Send(ctx, message)
	must(err)
	fmt.Println("sent", receipts[0].MessageID)

	delayed := &rmq.Message{Topic: "go", Body: []byte("delayed")}
	delayed.SetDelayTimestamp(time.Now().Add(2 * time.Second))
	_, err = producer.Send(ctx, delayed)
	must(err)

	simple, err := rmq.NewSimpleConsumer(config("go-simple"), rmq.WithSimpleAwaitDuration(5*time.Second),
		rmq.WithSimpleSubscriptionExpressions(map[string]*rmq.FilterExpression{"go": rmq.SUB_ALL}))
	must(err)
	must(simple.Start())
	for seen := 0; seen < 2; {
		views, err := simple.Receive(ctx, 16, 20*time.Second)
		if err != nil && !strings.Contains(err.Error(), "MESSAGE_NOT_FOUND") {
			log.Fatal(err)
		}
		for _, view := range views {
			seen++
			tag := ""
			if view.GetTag() != nil {
				tag = *view.GetTag()
			}
			fmt.Println("simple", view.GetMessageId(), string(view.GetBody()), tag, view.GetProperties()["p"], view.GetDeliveryAttempt())
			must(simple.Ack(ctx, view))
		}
	}

	transaction := producer.BeginTransaction()
	_, err = producer.SendWithTransaction(ctx, &rmq.Message{Topic: "go-tx", Body: []byte("tx")}, transaction)
	must(err)
	must(transaction.Commit())
	for number := 0; number < 6; number++ {
		ordered := &rmq.Message{Topic: "go-fifo", Body: []byte(fmt.Sprint(number))}
		ordered.SetMessageGroup("g")
		_, err = producer.Send(ctx, ordered)
		must(err)
	}

	var lock sync.Mutex
	got := map[string][]string{}
	enough := make(chan struct{}, 16)
	push := func(group string, topic string) rmq.PushConsumer {
		consumer, err := rmq.NewPushConsumer(config(group), rmq.WithPushAwaitDuration(5*time.Second),
			rmq.WithPushSubscriptionExpressions(map[string]*rmq.FilterExpression{topic: rmq.SUB_ALL}),
			rmq.WithPushMessageListener(&rmq.FuncMessageListener{Consume: func(view *rmq.MessageView) rmq.ConsumerResult {
				lock.Lock()
				defer lock.Unlock()
				got[topic] = append(got[topic], fmt.Sprint(string(view.GetBody()), ":", view.GetDeliveryAttempt()))
				enough <- struct{}{}
				if topic == "go-tx" && view.GetDeliveryAttempt() == 1 {
					return rmq.FAILURE
				}
				return rmq.SUCCESS
			}}))
		must(err)
		must(consumer.Start())
		return consumer
	}
	push("go-push", "go-tx")
	push("go-ordered", "go-fifo")
	for count := 0; count < 8; count++ {
		select {
		case <-enough:
		case <-time.After(60 * time.Second):
			log.Fatal("too few messages: ", got)
		}
	}
	lock.Lock()
	fmt.Println("push", got["go-tx"], got["go-fifo"])
}
