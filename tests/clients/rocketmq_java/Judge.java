import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.consumer.PushConsumer;
import org.apache.rocketmq.client.apis.consumer.SimpleConsumer;
import org.apache.rocketmq.client.apis.message.MessageView;
import org.apache.rocketmq.client.apis.producer.Producer;
import org.apache.rocketmq.client.apis.producer.SendReceipt;
import org.apache.rocketmq.client.apis.producer.Transaction;
import org.apache.rocketmq.client.apis.producer.TransactionResolution;

/** Sends and consumes with the official Java client as it comes (TLS, certificates unverified); prints what it saw. */
public class Judge {
    public static void main(String[] arguments) throws Exception {
        ClientServiceProvider provider = ClientServiceProvider.loadService();
        ClientConfiguration configuration =
            ClientConfiguration.newBuilder().setEndpoints(arguments[0]).setRequestTimeout(Duration.ofSeconds(10)).build();
        Producer producer = provider.newProducerBuilder().setClientConfiguration(configuration).setTopics("java", "java-tx")
            .setTransactionChecker(view -> TransactionResolution.COMMIT).build();
        SendReceipt receipt = producer.send(provider.newMessageBuilder().setTopic("java").setTag("a").setKeys("k")
            .addProperty("p", "v").setBody("hello".getBytes(StandardCharsets.UTF_8)).build());
        System.out.println("sent " + receipt.getMessageId());

        SimpleConsumer simple = provider.newSimpleConsumerBuilder().setClientConfiguration(configuration)
            .setConsumerGroup("java-simple").setAwaitDuration(Duration.ofSeconds(10))
            .setSubscriptionExpressions(Collections.singletonMap("java", FilterExpression.SUB_ALL)).build();
        List<MessageView> views = simple.receive(16, Duration.ofSeconds(15));
        for (MessageView view : views) {
            System.out.println("simple " + view.getMessageId() + " " + StandardCharsets.UTF_8.decode(view.getBody())
                + " " + view.getTag().get() + " " + view.getProperties().get("p") + " " + view.getDeliveryAttempt());
            simple.ack(view);
        }

        Transaction transaction = producer.beginTransaction();
        producer.send(provider.newMessageBuilder().setTopic("java-tx").setBody("tx".getBytes(StandardCharsets.UTF_8)).build(),
            transaction);
        transaction.commit();

        ConcurrentLinkedQueue<String> bodies = new ConcurrentLinkedQueue<>();
        CountDownLatch enough = new CountDownLatch(2);
        PushConsumer push = provider.newPushConsumerBuilder().setClientConfiguration(configuration).setConsumerGroup("java-push")
            .setSubscriptionExpressions(Collections.singletonMap("java-tx", FilterExpression.SUB_ALL))
            .setMessageListener(view -> {
                bodies.add(StandardCharsets.UTF_8.decode(view.getBody()) + " " + view.getDeliveryAttempt());
                enough.countDown();
                return view.getDeliveryAttempt() == 1 ? ConsumeResult.FAILURE : ConsumeResult.SUCCESS;
            }).build();
        System.out.println("enough " + enough.await(20, TimeUnit.SECONDS));
        System.out.println("push " + bodies);
        push.close();
        simple.close();
        producer.close();
        System.exit(0);
    }
}
